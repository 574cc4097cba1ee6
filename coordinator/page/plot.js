// plot.js: a line plot of the last minutes as SVG.
import { make, makeSvg } from './dom.js';

const WIDTH = 300, HEIGHT = 110, LEFT = 34, BOTTOM = 14, TOP = 6;

/** A round number at or above the largest value: 1, 2 or 5 times a power of ten. */
export function roundUp(value) {
  if (!(value > 0))
    return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((m) => m * power).find((v) => v >= value * 0.999);
}

function path(values, top, n) {
  const x = (i) => LEFT + ((WIDTH - LEFT) * (i + n - values.length)) / Math.max(n - 1, 1);
  const y = (v) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - Math.min(v, top) / top);
  return values.map((v, i) => `${i ? 'L' : 'M'}${x(i).toFixed(1)} ${y(v).toFixed(1)}`).join('');
}

/**
 * series: [{name, values}], oldest value first; n: how many values fit; top: largest value of the
 * axis, or null to take it from the values. The caption carries the newest values as text, so that
 * nothing is told by colour alone.
 */
export function plot({ title, span, series, n, top = null, unit = '' }) {
  const limit = top ?? roundUp(Math.max(0, ...series.flatMap((s) => s.values)));
  const middle = HEIGHT - BOTTOM;
  const svg = makeSvg('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img',
    preserveAspectRatio: 'none', 'aria-label': `${title}, ${span}` },
    makeSvg('line', { x1: LEFT, x2: WIDTH, y1: middle, y2: middle, class: 'axis' }),
    makeSvg('line', { x1: LEFT, x2: WIDTH, y1: TOP, y2: TOP, class: 'axis' }),
    makeSvg('text', { x: LEFT - 4, y: TOP + 8, 'text-anchor': 'end' }, String(limit)),
    makeSvg('text', { x: LEFT - 4, y: middle, 'text-anchor': 'end' }, '0'));
  const caption = make('figcaption', {}, make('span', {}, title));
  series.forEach((s, i) => {
    svg.append(makeSvg('path', { d: path(s.values, limit, n), class: `line series-${i + 1}` }));
    const last = s.values.length ? s.values[s.values.length - 1] : 0;
    caption.append(make('span', { class: `key series-${i + 1}` },
      `${s.name} ${last.toFixed(last < 10 && last % 1 ? 1 : 0)}${unit}`));
  });
  return make('figure', { class: 'plot' }, svg, caption);
}
