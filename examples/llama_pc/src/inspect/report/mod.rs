//! One self-contained HTML page about one or more runs.

mod curves;
mod gather;
mod reach;

use serde::Serialize;

pub use gather::{RunData, gather, of_rows, rows, with_spectra};

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPTS: [&str; 3] = [include_str!("chart.js"), include_str!("sections.js"), include_str!("page.js")];

/// The page's data.
#[derive(Serialize)]
struct Data {
    program: String,
    runs: Vec<RunData>,
    /// For each pair of runs: what the first needs to reach the final loss of the second.
    reach: Vec<Vec<Option<reach::Reach>>>,
}

/// The page, with everything it needs inline.
pub fn page(runs: Vec<RunData>) -> String {
    let reach = runs.iter().map(|run| runs.iter().map(|other| reach::reach(run, other)).collect()).collect();
    filled(&Data { program: format!("llama_pc {}", env!("CARGO_PKG_VERSION")), runs, reach })
}

fn filled(data: &Data) -> String {
    let json = serde_json::to_string(data).expect("bug: the report does not serialise");
    // In a script only "</" and "<!--" are special; \u003c is the same character in JSON.
    let json = json.replace('<', "\\u003c");
    let mut page = PAGE.replace("/*style*/", STYLE).replace("/*script*/", &SCRIPTS.concat());
    // Last, so that a run's name is never taken for a placeholder.
    let place = page.find("/*data*/").expect("bug: the page has no place for its data");
    page.replace_range(place..place + "/*data*/".len(), &json);
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_else_and_names_cannot_break_out() {
        let mut run = gather::tests::example("</script><script>alert(1)</script>/*data*/");
        run.config.insert("data.train".into(), "<!-- /*style*/".into());
        let page = filled(&Data { program: "p".into(), runs: vec![run], reach: vec![vec![None]] });
        for foreign in ["http://", "https://", "<link", "src=", "@import", "url("] {
            let found = page.matches(foreign).count();
            // The only URL is SVG's namespace, which is never fetched.
            let allowed = page.matches("http://www.w3.org/2000/svg").count() * usize::from(foreign == "http://");
            assert_eq!(found, allowed, "{foreign}");
        }
        assert_eq!(page.matches("</script>").count(), 2);
        assert!(!page.contains("<!-- /*style*/"));
        assert!(page.contains("alert(1)\\u003c/script>/*data*/"));
        let line = page.lines().find(|line| line.contains("\"runs\":[")).expect("the data");
        let json = &line[line.find('{').expect("an object")..=line.rfind('}').expect("its end")];
        let back: serde_json::Value = serde_json::from_str(json).expect("JSON");
        assert_eq!(back["runs"][0]["name"], "</script><script>alert(1)</script>/*data*/");
    }
}
