//! One self-contained HTML page: figures, charts, tables, images with a slider between two versions
//! or side by side. Depends on `base64` only. All text is escaped. The page needs no network and can be
//! read without scripts.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fmt::Write;

/// A figure in a box at the top.
pub struct Tile {
    /// Its label.
    pub name: String,
    /// Its value, with its unit.
    pub value: String,
}

/// An image in several versions of one size, PNG.
pub struct Preview {
    /// Its name.
    pub name: String,
    /// The caption below the image.
    pub caption: String,
    /// Versions that can be chosen, in order: name and PNG. The slider starts between the first and
    /// the second.
    pub versions: Vec<(String, Vec<u8>)>,
    /// Width and height in pixels.
    pub size: (u32, u32),
}

/// Versions of one image that are shown beside each other.
pub struct Strip {
    /// Name of the image.
    pub name: String,
    /// Name and PNG of each version, in order.
    pub versions: Vec<(String, Vec<u8>)>,
    /// Width and height in pixels.
    pub size: (u32, u32),
}

/// A table.
#[derive(Default)]
pub struct Table {
    /// Heading above it; empty for none.
    pub title: String,
    /// Names of the columns; empty for none.
    pub head: Vec<String>,
    /// Cells, row by row.
    pub rows: Vec<Vec<String>>,
}

/// The headings of two sections.
pub struct Headings {
    /// Above the charts.
    pub charts: String,
    /// Above the images beside each other.
    pub strips: String,
}

impl Default for Headings {
    fn default() -> Self {
        Headings {
            charts: "Curves".to_string(),
            strips: "The same crops".to_string(),
        }
    }
}

/// The content of the page.
#[derive(Default)]
pub struct Page {
    /// Heading.
    pub title: String,
    /// The line below the heading.
    pub subtitle: String,
    /// Figures.
    pub tiles: Vec<Tile>,
    /// What the reader must know to understand the page.
    pub notes: Vec<String>,
    /// A table before the charts.
    pub summary: Option<Table>,
    /// Headings of the charts and of the images beside each other.
    pub headings: Headings,
    /// SVG documents.
    pub charts: Vec<String>,
    /// Images with a slider.
    pub previews: Vec<Preview>,
    /// Images beside each other.
    pub strips: Vec<Strip>,
    /// A table at the end.
    pub settings: Option<Table>,
}

/// Escapes text for HTML, including attributes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c => out.push(c),
        }
    }
    out
}

/// The charts are drawn for a white page; the rules for their attributes give them the colours of
/// the page, which follow the reader's choice of light or dark.
const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1e2024;--soft:#646a73;--line:#dfe2e6;--back:#f7f8fa;--card:#fff;--blue:#0072b2;--red:#d55e00;--note:#fff3cd}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8eb;--soft:#9aa1ab;--line:#363b42;--back:#141619;--card:#1d2024;--blue:#56b4e9;--red:#f08a4b;--note:#4a3b12}}
*{box-sizing:border-box}body{margin:0;font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back)}
main{max-width:1240px;margin:0 auto;padding:32px 20px}h1{margin:0;font-size:26px;overflow-wrap:anywhere}h2{margin:36px 0 12px;font-size:18px}
.sub{color:var(--soft)}.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:10px;margin-top:20px}
.tile,.chart,figure,.table{background:var(--card);border:1px solid var(--line);border-radius:8px}
.note{background:var(--note);border-radius:8px;padding:10px 14px;margin-top:20px}
.tile{padding:10px 14px}.tile b{display:block;font-size:20px;font-variant-numeric:tabular-nums}.tile span{color:var(--soft);font-size:13px}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(520px,100%),1fr));gap:14px}.chart{overflow-x:auto}
.chart svg{display:block;width:100%;min-width:440px;height:auto}
.chart [fill='#FFFFFF' i]{fill:var(--card)}.chart [fill='#1E2024' i]{fill:var(--ink)}.chart [stroke='#E1E3E6' i],.chart [stroke='#C8CACE' i]{stroke:var(--line)}
.chart [stroke='#787C82' i]{stroke:var(--soft)}.chart [stroke='#0072B2' i]{stroke:var(--blue)}.chart [fill='#0072B2' i]{fill:var(--blue)}.chart [stroke='#D55E00' i]{stroke:var(--red)}.chart [stroke='#282828' i]{stroke:var(--ink)}
.previews{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(340px,100%),1fr));gap:14px}
.strip{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(150px,100%),260px));gap:14px;margin-bottom:20px}h3{margin:0 0 8px;font-size:15px;font-weight:600}
.strip img{display:block;width:100%;height:auto;image-rendering:pixelated}
figure{margin:0;padding:12px}.pair{position:relative;--cut:50%;overflow:hidden;line-height:0}
.pair img{width:100%;height:auto;image-rendering:pixelated}.pair img+img{position:absolute;inset:0;clip-path:inset(0 0 0 var(--cut))}
.pair::after{content:'';position:absolute;top:0;bottom:0;left:var(--cut);width:2px;margin-left:-1px;background:#fff;box-shadow:0 0 3px #000}
figure input{width:100%;margin:10px 0 4px}.sides{display:flex;justify-content:space-between;gap:8px}select{font:inherit;max-width:48%}
figcaption{color:var(--soft);font-size:13px;margin-top:6px}.table{overflow-x:auto;margin-top:20px}table{border-collapse:collapse;width:100%;font-size:14px}
td,th{padding:4px 14px;border-top:1px solid var(--line);vertical-align:top;text-align:left}th{color:var(--soft);font-weight:400}
tr:first-child td,tr:first-child th{border-top:0}td:first-child{color:var(--soft);white-space:nowrap}h2+.table{margin-top:0}
";

const SCRIPT: &str = "
for(const f of document.querySelectorAll('.previews figure')){const p=f.querySelector('.pair'),[a,b]=p.querySelectorAll('img'),
[l,r]=f.querySelectorAll('select'),s=f.querySelector('input'),
all=[...f.querySelector('template').content.querySelectorAll('img')].map(i=>i.getAttribute('src'));
const show=()=>{a.src=all[l.value];b.src=all[r.value];p.style.setProperty('--cut',s.value+'%')};
for(const e of [l,r,s])e.addEventListener('input',show);show()}
";

fn data_url(png: &[u8]) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(png))
}

impl Page {
    /// The page as HTML.
    pub fn html(&self) -> String {
        let mut out = String::new();
        let title = escape(&self.title);
        let _ = write!(
            out,
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
             <title>{title}</title><style>{STYLE}</style></head><body><main>\n<h1>{title}</h1><div class=\"sub\">{}</div>\n",
            escape(&self.subtitle)
        );
        out += "<div class=\"tiles\">\n";
        for tile in &self.tiles {
            let _ = writeln!(
                out,
                "<div class=\"tile\"><b>{}</b><span>{}</span></div>",
                escape(&tile.value),
                escape(&tile.name)
            );
        }
        out += "</div>\n";
        for note in &self.notes {
            let _ = writeln!(out, "<div class=\"note\">{}</div>", escape(note));
        }
        self.summary.iter().for_each(|table| table.write(&mut out));
        if !self.charts.is_empty() {
            let heading = escape(&self.headings.charts);
            let _ = writeln!(out, "<h2>{heading}</h2>\n<div class=\"charts\">");
            for svg in &self.charts {
                let _ = writeln!(out, "<div class=\"chart\">{}</div>", svg);
            }
            out += "</div>\n";
        }
        if !self.previews.is_empty() {
            out += "<h2>Previews</h2>\n<div class=\"previews\">\n";
            self.previews.iter().for_each(|p| p.write(&mut out));
            out += "</div>\n";
        }
        if !self.strips.is_empty() {
            let _ = writeln!(out, "<h2>{}</h2>", escape(&self.headings.strips));
            self.strips.iter().for_each(|strip| strip.write(&mut out));
        }
        self.settings.iter().for_each(|table| table.write(&mut out));
        let _ = writeln!(out, "</main><script>{SCRIPT}</script></body></html>");
        out
    }
}

/// An image within the page.
fn image_tag((name, png): &(String, Vec<u8>), (w, h): (u32, u32)) -> String {
    format!(
        "<img width=\"{w}\" height=\"{h}\" alt=\"{}\" src=\"{}\">",
        escape(name),
        data_url(png)
    )
}

impl Table {
    fn write(&self, out: &mut String) {
        if self.rows.is_empty() {
            return;
        }
        if !self.title.is_empty() {
            let _ = writeln!(out, "<h2>{}</h2>", escape(&self.title));
        }
        out.push_str("<div class=\"table\"><table>\n");
        let row = |cells: &[String], tag: &str| {
            let cells: String = cells
                .iter()
                .map(|cell| format!("<{tag}>{}</{tag}>", escape(cell)))
                .collect();
            format!("<tr>{cells}</tr>\n")
        };
        if !self.head.is_empty() {
            out.push_str(&row(&self.head, "th"));
        }
        for cells in &self.rows {
            out.push_str(&row(cells, "td"));
        }
        out.push_str("</table></div>\n");
    }
}

impl Strip {
    fn write(&self, out: &mut String) {
        let _ = writeln!(out, "<h3>{}</h3><div class=\"strip\">", escape(&self.name));
        for version in &self.versions {
            let _ = writeln!(
                out,
                "<figure>{}<figcaption>{}</figcaption></figure>",
                image_tag(version, self.size),
                escape(&version.0)
            );
        }
        out.push_str("</div>\n");
    }
}

impl Preview {
    fn write(&self, out: &mut String) {
        let (Some(left), Some(right)) = (self.versions.first(), self.versions.get(1)) else {
            return;
        };
        let image = |version: &(String, Vec<u8>)| image_tag(version, self.size);
        let _ = write!(
            out,
            "<figure><div class=\"pair\">{}{}</div>",
            image(left),
            image(right)
        );
        out.push_str("<input type=\"range\" min=\"0\" max=\"100\" value=\"50\" aria-label=\"left or right version\"><div class=\"sides\">");
        for (side, chosen) in [("left", 0), ("right", 1)] {
            let _ = write!(out, "<select aria-label=\"{side} version\">");
            for (i, (name, _)) in self.versions.iter().enumerate() {
                let selected = if i == chosen { " selected" } else { "" };
                let _ = write!(
                    out,
                    "<option value=\"{i}\"{selected}>{}</option>",
                    escape(name)
                );
            }
            out.push_str("</select>");
        }
        out.push_str("</div><template>");
        self.versions.iter().for_each(|v| out.push_str(&image(v)));
        let _ = writeln!(
            out,
            "</template><figcaption>{} {}</figcaption></figure>",
            escape(&self.name),
            escape(&self.caption)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_text_is_escaped() {
        let png = b"\x89PNG not really".to_vec();
        let page = Page {
            title: "<b>run</b>".into(),
            tiles: vec![Tile {
                name: "\"loss\"".into(),
                value: "1 < 2".into(),
            }],
            charts: vec!["<svg id=\"chart\"></svg>".into()],
            previews: vec![Preview {
                name: "a'b".into(),
                caption: "x & y".into(),
                versions: vec![
                    ("<before>".into(), png.clone()),
                    ("after".into(), png.clone()),
                    ("HR".into(), png.clone()),
                ],
                size: (4, 4),
            }],
            settings: Some(Table {
                title: "<settings>".into(),
                head: vec!["<k>".into()],
                rows: vec![vec!["k".into(), "</td><script>".into()]],
            }),
            notes: vec!["<note>".into()],
            strips: vec![Strip {
                name: "<strip>".into(),
                versions: vec![("<v>".into(), png.clone())],
                size: (4, 4),
            }],
            ..Page::default()
        };
        let html = page.html();
        for part in [
            "&lt;b&gt;run",
            "1 &lt; 2",
            "<svg id=\"chart\">",
            "&lt;before&gt;",
            "a&#39;b",
            "x &amp; y",
            "&lt;/td&gt;&lt;script&gt;",
            "&lt;settings&gt;",
            "<th>&lt;k&gt;",
            "&lt;note&gt;",
            "&lt;strip&gt;",
            "&lt;v&gt;",
        ] {
            assert!(html.contains(part), "{part}");
        }
        assert!(!html.contains("<b>run") && html.matches("<script>").count() == 1);
        assert!(
            !html.contains("http:") && !html.contains("https:"),
            "the page must not need a network"
        );
        assert_eq!(
            html.matches(&data_url(&png)).count(),
            6,
            "two shown, three to choose from, one in a strip"
        );
    }
}
