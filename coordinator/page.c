/* page.c: the table of the page's files. See page.h. */
#include "coordinator/page.h"

#include "base/util.h"

#define FILE_OF(name)                                                                              \
    extern const uint8_t page_##name[];                                                            \
    extern const size_t page_##name##_size
FILE_OF(index_html);
FILE_OF(style_css);
FILE_OF(icon_svg);
FILE_OF(main_js);
FILE_OF(dom_js);
FILE_OF(i18n_js);
FILE_OF(plot_js);
FILE_OF(fleet_js);
FILE_OF(play_js);

#define HTML   "text/html; charset=utf-8"
#define CSS    "text/css; charset=utf-8"
#define SVG    "image/svg+xml"
#define SCRIPT "text/javascript; charset=utf-8"
#define ROW(path, type, name)                                                                      \
    {                                                                                              \
        path, type, page_##name, &page_##name##_size                                               \
    }

const struct page_file page_files[] = {
    ROW("/", HTML, index_html),
    ROW("/page/style.css", CSS, style_css),
    ROW("/page/icon.svg", SVG, icon_svg),
    ROW("/page/main.js", SCRIPT, main_js),
    ROW("/page/dom.js", SCRIPT, dom_js),
    ROW("/page/i18n.js", SCRIPT, i18n_js),
    ROW("/page/plot.js", SCRIPT, plot_js),
    ROW("/page/fleet.js", SCRIPT, fleet_js),
    ROW("/page/play.js", SCRIPT, play_js),
};
const size_t page_n_files = ARRAY_LEN(page_files);
