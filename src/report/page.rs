//! One self-contained HTML page: figures, charts, settings, images with a slider between two
//! versions. Depends on `base64` only. All text is escaped. The page needs no network and can be
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

/// The content of the page.
#[derive(Default)]
pub struct Page {
    /// Heading.
    pub title: String,
    /// The line below the heading.
    pub subtitle: String,
    /// Figures.
    pub tiles: Vec<Tile>,
    /// SVG documents.
    pub charts: Vec<String>,
    /// Images.
    pub previews: Vec<Preview>,
    /// Settings: name and value.
    pub settings: Vec<(String, String)>,
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

const STYLE: &str = "
:root{color-scheme:light;--ink:#1e2024;--soft:#646a73;--line:#dfe2e6;--back:#f7f8fa}
*{box-sizing:border-box}body{margin:0;font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back)}
main{max-width:1120px;margin:0 auto;padding:32px 20px}h1{margin:0;font-size:26px}h2{margin:36px 0 12px;font-size:18px}
.sub{color:var(--soft)}.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:10px;margin-top:20px}
.tile,.chart,figure,.table{background:#fff;border:1px solid var(--line);border-radius:8px}
.tile{padding:10px 14px}.tile b{display:block;font-size:20px;font-variant-numeric:tabular-nums}.tile span{color:var(--soft);font-size:13px}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(480px,100%),1fr));gap:14px}.chart svg{display:block;width:100%;height:auto}
.chart{overflow:hidden}.previews{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(340px,100%),1fr));gap:14px}
figure{margin:0;padding:12px}.pair{position:relative;--cut:50%;overflow:hidden;line-height:0}
.pair img{width:100%;height:auto;image-rendering:pixelated}.pair img+img{position:absolute;inset:0;clip-path:inset(0 0 0 var(--cut))}
.pair::after{content:'';position:absolute;top:0;bottom:0;left:var(--cut);width:2px;margin-left:-1px;background:#fff;box-shadow:0 0 3px #000}
figure input{width:100%;margin:10px 0 4px}.sides{display:flex;justify-content:space-between;gap:8px}select{font:inherit;max-width:48%}
figcaption{color:var(--soft);font-size:13px;margin-top:6px}.table{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:14px}
td{padding:4px 14px;border-top:1px solid var(--line);vertical-align:top}tr:first-child td{border-top:0}td:first-child{color:var(--soft);white-space:nowrap}
";

const SCRIPT: &str = "
for(const f of document.querySelectorAll('figure')){const p=f.querySelector('.pair'),[a,b]=p.querySelectorAll('img'),
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
        if !self.charts.is_empty() {
            out += "<h2>Curves</h2>\n<div class=\"charts\">\n";
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
        if !self.settings.is_empty() {
            out += "<h2>Settings</h2>\n<div class=\"table\"><table>\n";
            for (name, value) in &self.settings {
                let _ = writeln!(
                    out,
                    "<tr><td>{}</td><td>{}</td></tr>",
                    escape(name),
                    escape(value)
                );
            }
            out += "</table></div>\n";
        }
        let _ = writeln!(out, "</main><script>{SCRIPT}</script></body></html>");
        out
    }
}

impl Preview {
    fn write(&self, out: &mut String) {
        let (Some(left), Some(right)) = (self.versions.first(), self.versions.get(1)) else {
            return;
        };
        let (w, h) = self.size;
        let image = |(name, png): &(String, Vec<u8>)| {
            format!(
                "<img width=\"{w}\" height=\"{h}\" alt=\"{}\" src=\"{}\">",
                escape(name),
                data_url(png)
            )
        };
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
            settings: vec![("k".into(), "</td><script>".into())],
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
            5,
            "two shown, three to choose from"
        );
    }
}
