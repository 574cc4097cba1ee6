// fleet.js: the live picture of groups and ranks, from GET /status once a second.
import { find, headers, make, reason } from './dom.js';
import { onLanguage, t } from './i18n.js';
import { plot } from './plot.js';

const PERIOD_MS = 1000;
const GOOD = ['ready', 'serving'];
const BAD = ['failed', 'degraded', 'absent', 'gone'];

let status = null; // the newest answer, or null
let failure = '';  // why there is none

function bytes(n) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let i = 0;
  for (; n >= 1024 && i < units.length - 1; i++)
    n /= 1024;
  return `${n.toFixed(n < 10 && i ? 1 : 0)} ${units[i]}`;
}

function duration(seconds) {
  const s = Math.floor(seconds), days = Math.floor(s / 86400);
  const clock = new Date(s * 1000).toISOString().slice(11, 19);
  return days ? `${days} d ${clock}` : clock;
}

const sum = (groups, field) => groups.reduce((all, g) => all + g[field], 0);

export function shade(state) {
  return GOOD.includes(state) ? 'good' : BAD.includes(state) ? 'bad' : 'warn';
}

function tile(value, label) {
  return make('div', { class: 'tile' }, make('b', {}, value), make('span', {}, label));
}

function showTiles() {
  const groups = status.groups;
  const total = sum(groups, 'kv_blocks_total'), used = total - sum(groups, 'kv_blocks_free');
  find('tiles').replaceChildren(
    tile(sum(groups, 'decode_tokens_per_second').toFixed(1), t('decode_rate')),
    tile(sum(groups, 'prefill_tokens_per_second').toFixed(1), t('prefill_rate')),
    tile(String(sum(groups, 'running')), t('running')),
    tile(String(status.waiting), t('waiting')),
    tile(total ? `${((100 * used) / total).toFixed(0)} %` : '–', t('kv')),
    tile(String(status.requests.finished), t('done_requests')),
    tile(String(status.requests.rejected), t('refused')),
    tile(duration(status.uptime_seconds), t('uptime')));
}

function showPlots() {
  const h = status.history;
  if (!h)
    return;
  const n = h.capacity;
  const span = t('last_minutes', { n: Math.round((n * h.interval_seconds) / 60) });
  find('plots').replaceChildren(
    plot({ title: t('plot_tokens'), span, n, series: [
      { name: t('written'), values: h.decode_tokens_per_second },
      { name: t('read'), values: h.prefill_tokens_per_second }] }),
    plot({ title: t('plot_requests'), span, n, series: [
      { name: t('running'), values: h.running }, { name: t('waiting'), values: h.waiting }] }),
    plot({ title: t('plot_kv'), span, n, top: 100, unit: ' %', series: [
      { name: t('kv'), values: h.kv_usage.map((v) => 100 * v) }] }));
}

function rankRow(r) {
  const loading = r.state === 'loading' && r.total_bytes;
  const state = loading ? `${t(r.state)} ${((100 * r.loaded_bytes) / r.total_bytes).toFixed(0)} %` : t(r.state);
  const age = r.step_age_ms ? `${(r.step_age_ms / 1000).toFixed(2)} s` : t('idle');
  const cells = [String(r.rank), String(r.stage),
    make('span', { class: 'state', 'data-state': shade(r.state) }, state), r.host, r.device, age,
    r.compute_ms_avg ? r.compute_ms_avg.toFixed(2) : '–', bytes(r.weights_bytes),
    bytes(r.kv_bytes), String(r.restarts), r.last_error];
  return make('tr', { 'data-rank': r.rank, title: r.description }, ...cells.map((c) => make('td', {}, c)));
}

const COLUMNS = ['rank', 'stage', 'state', 'host', 'device', 'step_age', 'ms_step', 'weights',
  'kv_memory', 'restarts', 'error'];

/** What stays while the numbers change, so that focus and scroll position stay, too. */
function newCard(id) {
  return make('div', { class: 'group', 'data-group': id }, make('h3'), make('div'),
    make('div', { class: 'scroll', tabindex: 0, role: 'region' }, make('table', { class: 'ranks' })));
}

function fillCard(card, g) {
  const [title, memory, scroll] = card.children;
  const name = `${t('group')} ${g.id}`;
  const shape = `${g.tp_size} × ${g.pp_size}, ${g.stage_layers.join(' + ')} ${t('layers')}`;
  const used = g.kv_blocks_total - g.kv_blocks_free;
  title.replaceChildren(`${name} `,
    make('span', { class: 'badge', 'data-state': shade(g.state) }, t(g.state)), ` ${shape}`);
  memory.className = 'muted';
  memory.replaceChildren(...(g.kv_blocks_total ? [make('label', {},
    t('blocks', { used, total: g.kv_blocks_total }),
    make('meter', { min: 0, max: g.kv_blocks_total, value: used }))] : []));
  if (g.last_error)
    memory.append(make('p', {}, g.last_error));
  scroll.setAttribute('aria-label', name);
  scroll.firstChild.replaceChildren(
    make('thead', {}, make('tr', {}, ...COLUMNS.map((c) => make('th', { scope: 'col' }, t(c))))),
    make('tbody', {}, ...g.ranks.map(rankRow)));
}

function showHealth() {
  const word = failure ? 'unreachable' : status.draining ? 'draining'
    : status.healthy ? 'serving' : 'waiting_ranks';
  const badge = find('health');
  const text = t(word);
  if (badge.textContent !== text) // a status region: it speaks when it changes
    badge.textContent = text;
  badge.dataset.t = word;
  badge.dataset.state = failure ? 'bad' : word === 'serving' ? 'good' : 'warn';
}

function showGroups() {
  const box = find('groups');
  const cards = status.groups.map((g) => {
    const old = [...box.children].find((card) => card.dataset.group === g.id);
    const card = old ?? newCard(g.id);
    fillCard(card, g);
    return card;
  });
  if (cards.length === 0)
    cards.push(make('p', { class: 'muted' }, t('no_groups')));
  if (cards.length !== box.children.length || cards.some((card, i) => card !== box.children[i]))
    box.replaceChildren(...cards);
}

function show() {
  if (!status && !failure)
    return;
  showHealth();
  find('fleet-error').hidden = !failure;
  find('fleet-error').textContent = failure;
  if (!status)
    return;
  find('model').textContent = `${status.model.id}, ${status.model.weights}`;
  find('version').textContent = `glmd ${status.version}`;
  showTiles();
  showPlots();
  showGroups();
}

async function ask() {
  try {
    const response = await fetch('/status', { headers: headers(), cache: 'no-store',
      signal: AbortSignal.timeout(5000) });
    if (response.ok) {
      status = await response.json();
      failure = '';
    } else {
      failure = response.status === 401 ? t('need_key') : await reason(response);
    }
  } catch (e) {
    failure = `${t('unreachable')}: ${e.message}`;
  }
  show();
}

/** Asks once a second while the page is visible. */
export function startFleet() {
  onLanguage(show);
  const round = async () => {
    try {
      if (!document.hidden)
        await ask();
    } finally { // whatever one answer is like, there is a next one
      setTimeout(round, PERIOD_MS);
    }
  };
  round();
}

/** The name that requests give as their model. */
export function modelName() {
  return status?.model.id ?? '';
}
