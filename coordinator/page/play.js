// play.js: the playground. Three ways to ask, one way to show what comes.
import { find, headers, make, readEvents, reason } from './dom.js';
import { onLanguage, t } from './i18n.js';
import { modelName } from './fleet.js';

// Name, kind, attributes of the input, value at the start ('' = not sent: the server's default).
const FIELDS = [
  ['max_tokens', 'number', { min: 1, max: 4096, step: 1 }, '64'],
  ['temperature', 'number', { min: 0, max: 10, step: 'any' }, '0.8'],
  ['top_p', 'number', { min: 0, max: 1, step: 'any' }, '0.9'],
  ['top_k', 'number', { min: 0, step: 1 }, ''],
  ['min_p', 'number', { min: 0, max: 1, step: 'any' }, ''],
  ['repetition_penalty', 'number', { min: 0.01, max: 100, step: 'any' }, ''],
  ['seed', 'number', { min: 0, step: 1 }, ''],
  ['stop', 'text', {}, ''],
];

const EXAMPLES = {
  continue: 'The history of the river begins',
  fill: 'The capital of France is [MASK], on the river [MASK].',
  chat: '',
};

let mode = 'continue';
let running = null;  // AbortController of the request that runs
let talk = [];       // chat: {role, content}
const prompts = { ...EXAMPLES };

/* ---- what is asked ---- */

function sampling() {
  const values = {};
  for (const [name, kind] of FIELDS) {
    const text = find(`f-${name}`).value;
    if (text !== '')
      values[name] = kind === 'number' ? Number(text) : text;
  }
  return values;
}

/** Path and body of the request as the page's fields stand. */
function request() {
  const prompt = find('prompt').value;
  const more = { ...sampling(), stream: true };
  const model = modelName();
  const logprobs = find('f-probabilities').checked;
  if (mode === 'fill') {
    const { max_tokens: _, ...rest } = more;
    return { path: '/v1/fill', body: { model, text: prompt, ...rest } };
  }
  more.stream_options = { include_usage: true };
  if (mode === 'chat') {
    const messages = [...talk, { role: 'user', content: prompt }];
    const wanted = logprobs ? { logprobs: true, top_logprobs: 5 } : {};
    return { path: '/v1/chat/completions', body: { model, messages, ...more, ...wanted } };
  }
  return { path: '/v1/completions', body: { model, prompt, ...more, ...(logprobs ? { logprobs: 5 } : {}) } };
}

/** For a shell: single quotes, and those inside closed, escaped and opened again. */
const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function showCurl() {
  const { path, body } = request();
  const key = find('key').value ? " \\\n  -H 'Authorization: Bearer '\"$GLMD_API_KEY\"" : '';
  find('curl').textContent = `curl -N ${location.origin}${path} \\\n  -H 'Content-Type: application/json'${key} \\\n  -d ${quote(JSON.stringify(body))}`;
}

/* ---- what is shown ---- */

/** The alternatives of a token as {token, p}, likeliest first. */
function alternatives(top) {
  const list = Array.isArray(top) ? top.map((x) => [x.token, x.logprob]) : Object.entries(top ?? {});
  return list.map(([token, logprob]) => ({ token, p: Math.exp(logprob) })).sort((a, b) => b.p - a.p);
}

function tokenSpan(text, logprob, top) {
  const span = make('span', { class: 'token new' }, text);
  if (logprob === undefined || logprob === null)
    return span;
  const p = Math.exp(logprob);
  span.tabIndex = 0;
  span.dataset.p = p < 0.2 ? 'low' : 'high';
  const percent = (v) => `${(100 * v).toFixed(1)} %`;
  const rows = alternatives(top);
  span.setAttribute('aria-label', `${text} ${t('probability')} ${percent(p)}`);
  const show = () => showTip(span, text, percent(p), rows.map((r) => [r.token, percent(r.p)]));
  span.addEventListener('mouseenter', show);
  span.addEventListener('focus', show);
  span.addEventListener('mouseleave', hideTip);
  span.addEventListener('blur', hideTip);
  return span;
}

function showTip(at, text, p, rows) {
  const tip = find('tip');
  tip.replaceChildren(make('b', {}, `${JSON.stringify(text)} ${p}`),
    make('table', {}, ...rows.map((r) => make('tr', {}, ...r.map((c) => make('td', {}, c))))));
  tip.hidden = false;
  const box = at.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - tip.offsetWidth - 8))}px`;
  const below = box.bottom + 6, lowest = innerHeight - tip.offsetHeight - 4;
  tip.style.top = `${Math.max(4, Math.min(below > lowest ? box.top - tip.offsetHeight - 6 : below, lowest))}px`;
}

function hideTip() {
  find('tip').hidden = true;
}

function appendText(box, text) {
  if (text)
    box.append(make('span', { class: 'token new' }, text));
}

/** /v1/completions: the tokens with their probabilities where they were asked for. */
function showCompletion(chunk, box) {
  for (const choice of chunk.choices ?? []) {
    const lp = choice.logprobs;
    if (lp?.tokens?.length)
      lp.tokens.forEach((x, i) => box.append(tokenSpan(x, lp.token_logprobs[i], lp.top_logprobs?.[i])));
    else
      appendText(box, choice.text);
  }
}

function showChat(chunk, box) {
  for (const choice of chunk.choices ?? []) {
    const content = choice.logprobs?.content;
    if (content?.length)
      content.forEach((x) => box.append(tokenSpan(x.token, x.logprob, x.top_logprobs)));
    else
      appendText(box, choice.delta?.content);
  }
}

/** The text with its blanks as boxes, which light up as their tokens come. */
function blankBoxes(text, box) {
  const kinds = ['[MASK]', '[sMASK]', '[gMASK]'];
  const kind = kinds.find((k) => text.includes(k)); // the server fills one kind
  const parts = kind ? text.split(kind) : [text, ''];
  const blanks = parts.slice(1).map(() => make('span', { class: 'blank' }));
  box.replaceChildren(make('span', { class: 'given' }, parts[0]));
  blanks.forEach((blank, i) => box.append(blank, make('span', { class: 'given' }, parts[i + 1])));
  return blanks;
}

function showFill(chunk, blanks) {
  for (const delta of chunk.blanks ?? []) {
    const blank = blanks[delta.index];
    if (!blank)
      continue;
    blank.classList.add('lit');
    appendText(blank, delta.text);
    if (delta.finish_reason)
      blank.classList.remove('lit');
  }
}

/* ---- one request ---- */

function setRunning(controller) {
  running = controller;
  find('run').disabled = Boolean(controller);
  find('stop').disabled = !controller;
  find('answer').setAttribute('aria-busy', String(Boolean(controller)));
}

function showError(text) {
  find('error').textContent = text;
  find('error').hidden = !text;
}

function showTalk() {
  find('talk').replaceChildren(...talk.map((m) =>
    make('div', { class: 'turn' }, make('b', {}, t(m.role)), m.content)));
}

function finish(usage, started) {
  const seconds = (performance.now() - started) / 1000;
  const n = usage?.completion_tokens ?? 0;
  find('progress').textContent = t('tokens_in', { n, s: seconds.toFixed(2), r: (n / seconds).toFixed(1) });
}

async function ask(controller) {
  const { path, body } = request();
  const box = find('answer');
  const asked = mode;
  const started = performance.now();
  const blanks = asked === 'fill' ? blankBoxes(body.text, box) : null;
  if (!blanks)
    box.replaceChildren();
  const response = await fetch(path, { method: 'POST', signal: controller.signal,
    headers: headers({ 'Content-Type': 'application/json' }), body: JSON.stringify(body) });
  if (!response.ok)
    throw new Error(await reason(response));
  let usage = null;
  await readEvents(response, (chunk) => {
    if (chunk.error)
      throw new Error(chunk.error.message);
    usage = chunk.usage ?? usage;
    if (asked === 'fill')
      showFill(chunk, blanks);
    else
      (asked === 'chat' ? showChat : showCompletion)(chunk, box);
  });
  if (asked === 'chat') {
    talk = [...body.messages, { role: 'assistant', content: box.textContent }];
    showTalk();
    find('prompt').value = '';
  }
  finish(usage, started);
}

async function run(event) {
  event.preventDefault();
  if (running)
    return;
  const controller = new AbortController();
  setRunning(controller);
  showError('');
  find('progress').textContent = t('working');
  try {
    await ask(controller);
  } catch (e) {
    const stopped = controller.signal.aborted;
    find('progress').textContent = stopped ? t('stopped') : '';
    if (!stopped)
      showError(e.message);
  } finally {
    setRunning(null);
    for (const lit of document.querySelectorAll('.blank.lit'))
      lit.classList.remove('lit');
  }
}

/* ---- tabs and fields ---- */

function showMode() {
  for (const tab of document.querySelectorAll('[role="tab"]')) {
    const chosen = tab.id === `tab-${mode}`;
    tab.setAttribute('aria-selected', String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
  }
  find('panel').setAttribute('aria-labelledby', `tab-${mode}`);
  find('blanks').hidden = mode !== 'fill';
  find('talk').hidden = mode !== 'chat';
  find('prompt-label').dataset.t = mode === 'continue' ? 'prompt' : `prompt_${mode}`;
  find('prompt-label').textContent = t(find('prompt-label').dataset.t);
  find('field-max_tokens').hidden = mode === 'fill';
  find('field-probabilities').hidden = mode === 'fill';
  showCurl();
}

function choose(name) {
  if (name !== mode)
    running?.abort(); // its answer has no place in the other tab
  prompts[mode] = find('prompt').value;
  mode = name;
  find('prompt').value = prompts[mode];
  find('answer').replaceChildren();
  showError('');
  find('progress').textContent = '';
  showMode();
}

function startTabs() {
  const names = ['continue', 'fill', 'chat'];
  find('tabs').addEventListener('click', (e) => {
    if (e.target.role === 'tab' || e.target.getAttribute('role') === 'tab')
      choose(e.target.id.slice(4));
  });
  find('tabs').addEventListener('keydown', (e) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[e.key];
    if (!step)
      return;
    choose(names[(names.indexOf(mode) + step + names.length) % names.length]);
    find(`tab-${mode}`).focus();
  });
}

function makeFields() {
  for (const [name, kind, attributes, value] of FIELDS) {
    const word = name === 'stop' ? 'stop_text' : name;
    find('fields').append(make('label', { id: `field-${name}` }, make('span', { 'data-t': word }),
      make('input', { id: `f-${name}`, type: kind, value, ...attributes })));
  }
  find('fields').append(make('label', { class: 'check', id: 'field-probabilities' },
    make('input', { id: 'f-probabilities', type: 'checkbox', checked: '' }),
    make('span', { 'data-t': 'probabilities' })));
}

function insert(text) {
  const area = find('prompt');
  area.setRangeText(text, area.selectionStart, area.selectionEnd, 'end');
  area.focus();
  showCurl();
}

function clear() {
  running?.abort();
  talk = [];
  showTalk();
  find('answer').replaceChildren();
  find('progress').textContent = '';
  showError('');
  showCurl();
}

/** The clipboard is there on secure origins only; elsewhere the text is selected, to be copied. */
async function copy() {
  getSelection().selectAllChildren(find('curl'));
  if (!navigator.clipboard)
    return;
  await navigator.clipboard.writeText(find('curl').textContent);
  find('progress').textContent = t('copied');
}

export function startPlay() {
  makeFields();
  startTabs();
  find('prompt').value = prompts[mode];
  find('panel').addEventListener('submit', run);
  find('panel').addEventListener('input', showCurl);
  find('prompt').addEventListener('keydown', (e) => {
    if (e.key === 'Enter' && (e.ctrlKey || e.metaKey))
      find('panel').requestSubmit();
  });
  find('stop').addEventListener('click', () => running?.abort());
  addEventListener('pagehide', () => running?.abort()); // a page that may come back goes on else
  find('clear').addEventListener('click', clear);
  find('copy').addEventListener('click', copy);
  find('curl-box').addEventListener('toggle', showCurl);
  find('blanks').addEventListener('click', (e) => e.target.dataset.insert && insert(e.target.dataset.insert));
  document.addEventListener('keydown', (e) => e.key === 'Escape' && hideTip());
  onLanguage(() => {
    showTalk();
    showMode();
  });
}
