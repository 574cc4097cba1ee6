// dom.js: making elements and asking the server, in as few words as possible.

/** An element with attributes and children; text never becomes markup. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined)
      element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const SVG = 'http://www.w3.org/2000/svg';

export function makeSvg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes))
    element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export const find = (id) => document.getElementById(id);

/** Headers of every request: the key of the page's head, when there is one. */
export function headers(more = {}) {
  const key = find('key').value.trim();
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

/** What an answer that is not 2xx says, as one line. */
export async function reason(response) {
  let said = '';
  try {
    const body = await response.json();
    said = body.error?.message ?? '';
  } catch {
    // not JSON: the status has to do
  }
  return `${response.status} ${said || response.statusText}`;
}

/** Calls fn(object) for each `data:` line of a server-sent stream, until it ends or says [DONE]. */
export async function readEvents(response, fn) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done)
      return;
    const lines = (rest + value).split('\n');
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith('data:'))
        continue;
      const data = line.slice(5).trim();
      if (data === '[DONE]')
        return;
      fn(JSON.parse(data));
    }
  }
}
