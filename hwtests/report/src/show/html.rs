//! One page with everything in it, which needs nothing but itself.

use std::fmt::Write;

use crate::document::{Document, Table};
use crate::show::promises::promises;
use crate::show::svg::{chart, escape};
use crate::show::text::figures;

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px }
th, td { padding: 3px 10px; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left }
caption { text-align: left; font-weight: 600; padding: 4px 0 }
code { font-size: 13px } .goal { color: #00734f } .first { color: #0072b2 } .missed { color: #b33c00 }
svg { width: 100%; height: auto; margin: .5em 0 } svg text { font: 12px system-ui, sans-serif; fill: #333 }
svg .title { font-size: 14px; font-weight: 600 } svg .grid { stroke: #e4e4e4 }
svg .whisker { stroke: #555 } svg .median { stroke: #000; stroke-width: 2 }";

/// The page of these reports, with what was promised where there are several.
pub fn page(documents: &[Document]) -> String {
    // Writing to a string cannot fail, so results are dropped.
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <title>Longship: what it costs</title>\n<style>{STYLE}\n</style>\n\
         <h1>Longship: what it costs</h1>\n"
    );
    if documents.len() > 1 {
        page += &table(&promises(documents));
    }
    for document in documents {
        section(&mut page, document);
    }
    page + "</html>\n"
}

fn section(page: &mut String, document: &Document) {
    let environment = &document.environment;
    let _ = writeln!(
        page,
        "<h2>{}</h2>\n<p><code>{} {}</code><br>\n{}{}, Linux {}, {} CPUs, {} MB of \
         memory. Times: {}.</p>",
        escape(&document.label),
        escape(&document.program),
        escape(&document.arguments.join(" ")),
        if environment.testbed {
            "In the testbed, a virtual host: "
        } else {
            ""
        },
        escape(&environment.cpu_model),
        escape(&environment.kernel),
        environment.cpus,
        environment.memory_bytes / 1_000_000,
        environment.clock.describe(),
    );
    for found in &document.findings.charts {
        *page += &chart(found);
    }
    *page += &table(&figures(&document.findings.figures));
    for found in &document.findings.tables {
        *page += &table(found);
    }
    for note in &document.findings.notes {
        let _ = writeln!(page, "<p>{}</p>", escape(note));
    }
}

fn table(table: &Table) -> String {
    let mut html = format!("<table>\n<caption>{}</caption>\n<tr>", escape(&table.title));
    for column in &table.columns {
        let _ = write!(html, "<th>{}</th>", escape(column));
    }
    html += "</tr>\n";
    for row in &table.rows {
        html += "<tr>";
        for cell in row {
            let class = match cell.as_str() {
                "goal" | "first" | "missed" => format!(" class=\"{cell}\""),
                _ => String::new(),
            };
            let _ = write!(html, "<td{class}>{}</td>", escape(cell));
        }
        html += "</tr>\n";
    }
    html + "</table>\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Figure;
    use crate::document::tests::document;

    #[test]
    fn a_page_needs_nothing_but_itself_and_says_its_clock() {
        let figure = || Figure::of("start.clone", "clone <1>", "ms", vec![1.0, 2.0]);
        let one = document(figure().into_iter().collect());
        let page = page(&[one.clone(), one]);
        assert!(!page.contains("src=") && !page.contains("href=") && !page.contains("<script"));
        for part in [
            "wall clock",
            "clone &lt;1&gt;",
            "a &amp; b",
            "<svg",
            "What was promised",
            "another clock",
        ] {
            assert!(page.contains(part), "`{part}` is missing");
        }
        assert_eq!(
            page.matches("<table>").count(),
            page.matches("</table>").count()
        );
    }
}
