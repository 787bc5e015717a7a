"""The style sheet of the HTML report: no external files, dark or light as the reader's system is."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1b1f24;--soft:#5b6470;--line:#dfe3e8;--heat:37,99,235;
--bad:220,38,38;--hatch:#e9ecf0}
@media(prefers-color-scheme:dark){:root{--bg:#14171b;--card:#1d2127;--ink:#e8eaed;--soft:#9aa4b0;--line:#333a43;
--heat:96,145,250;--bad:248,113,113;--hatch:#262c34}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"DejaVu Sans",sans-serif}
main{max-width:1180px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:26px;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:18px;margin:36px 0 12px}
p{margin:4px 0}
.soft{color:var(--soft)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:20px 0}
.card,.panel{background:var(--card);border:1px solid var(--line);border-radius:10px}
.card{padding:14px 16px}
.card b{display:block;font-size:26px;line-height:1.25;font-variant-numeric:tabular-nums}
.panel{padding:6px 16px 10px;overflow-x:auto}
.note{border-left:4px solid #d97706;background:var(--card);padding:8px 14px;margin:8px 0;border-radius:0 8px 8px 0}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:7px 10px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--soft);font-size:13px;vertical-align:bottom}
tbody tr:last-child td,tbody tr:last-child th{border-bottom:0}
th:first-child,td:first-child{text-align:left}
.swatch{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:8px;vertical-align:-1px;
border:1px solid rgba(128,128,128,.6)}
.bar{display:inline-block;width:64px;height:7px;border-radius:4px;background:var(--hatch);margin-left:8px;
overflow:hidden;vertical-align:1px}
.bar i{display:block;height:100%;background:rgb(var(--heat))}
.matrix{width:auto;min-width:50%}
.matrix td{text-align:center;border:2px solid var(--card);min-width:64px;line-height:1.25}
.matrix td small{display:block;color:inherit;opacity:.75;font-size:11px}
.matrix th{text-align:center}.matrix tbody th{text-align:left;vertical-align:middle;border-bottom:0}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(260px,1fr));gap:14px}
.crops{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:10px}
figure{margin:0}
figure img{width:100%;display:block;border-radius:6px;background:var(--hatch);border:1px solid var(--line)}
.crops img{image-rendering:pixelated}
figcaption{font-size:13px;color:var(--soft);margin-top:4px}
.worst{padding:12px 16px;margin:12px 0}
.worst h3{font-size:15px;margin:0 0 2px}
.legend>span{margin-right:18px;white-space:nowrap;display:inline-block}
.ignored{opacity:.55}
@media print{body{background:#fff}.panel,.card{break-inside:avoid}}
"""
