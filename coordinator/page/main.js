// main.js: settings that are kept in this browser, and the start of the page's two parts.
import { find } from './dom.js';
import { startFleet } from './fleet.js';
import { preferredLanguage, setLanguage } from './i18n.js';
import { startPlay } from './play.js';

/** A setting of the page's head: kept in `store`, applied at once and at every change. */
function setting(id, store, first, apply) {
  const field = find(id);
  field.value = store.getItem(`glmd.${id}`) ?? first;
  apply(field.value);
  field.addEventListener('change', () => {
    store.setItem(`glmd.${id}`, field.value);
    apply(field.value);
  });
}

setting('theme', localStorage, 'auto', (theme) => {
  document.documentElement.dataset.theme = theme;
});
setting('key', sessionStorage, '', () => {}); // gone with the tab
startPlay();
startFleet();
setting('language', localStorage, preferredLanguage(), setLanguage);
