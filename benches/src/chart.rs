//! Bars as an SVG: for each row of a table what Forebay needs, and beside it what testpmd io does.
//!
//! The picture says nothing that the table does not; it holds no figure that was not measured.

use plotters::prelude::*;

use crate::error::BenchError;

const WIDTH_PX: u32 = 900;
const TITLE_PX: u32 = 60;
const ROW_PX: i32 = 46;
const BAR_PX: i32 = 16;
/// Where the bars begin; the names stand before.
const BARS_AT_PX: i32 = 350;
/// Room for the figure behind the longest bar.
const FIGURE_PX: u32 = 120;
const FOREBAY: RGBColor = RGBColor(31, 119, 180);
const IO: RGBColor = RGBColor(170, 170, 170);
const FONT: &str = "sans-serif";

/// A row of the chart: cycles per packet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Bar {
    pub name: String,
    pub forebay: f64,
    /// Where it was measured.
    pub io: Option<f64>,
}

/// Draws the bars.
pub(crate) fn svg(title: &str, bars: &[Bar]) -> Result<String, BenchError> {
    let mut text = String::new();
    draw(&mut text, title, bars).map_err(|error| BenchError::Chart { reason: error.to_string() })?;
    Ok(text)
}

fn draw(text: &mut String, title: &str, bars: &[Bar]) -> Result<(), Box<dyn std::error::Error>> {
    let height = TITLE_PX + ROW_PX.unsigned_abs() * bars.len() as u32;
    let area = SVGBackend::with_string(text, (WIDTH_PX, height)).into_drawing_area();
    area.fill(&WHITE)?;
    area.draw(&Text::new(title.to_owned(), (12, 12), (FONT, 17)))?;
    area.draw(&Text::new(
        "cycles per packet, fewer is better: Forebay",
        (12, 36),
        (FONT, 13).into_font().color(&FOREBAY),
    ))?;
    area.draw(&Text::new("testpmd io", (BARS_AT_PX, 36), (FONT, 13).into_font().color(&IO)))?;
    let longest = bars.iter().map(|bar| bar.forebay.max(bar.io.unwrap_or(0.0))).fold(1.0, f64::max);
    let scale = f64::from(WIDTH_PX - BARS_AT_PX.unsigned_abs() - FIGURE_PX) / longest;
    let mut top = TITLE_PX as i32;
    for bar in bars {
        area.draw(&Text::new(bar.name.clone(), (12, top + 8), (FONT, 14)))?;
        let values = [(Some(bar.forebay), FOREBAY, 0), (bar.io, IO, BAR_PX + 2)];
        for (value, color, below) in values {
            let Some(value) = value else { continue };
            // Saturates.
            let end = BARS_AT_PX + (value * scale) as i32;
            let (from, to) = ((BARS_AT_PX, top + below), (end, top + below + BAR_PX));
            area.draw(&Rectangle::new([from, to], color.filled()))?;
            area.draw(&Text::new(format!("{value:.0}"), (end + 6, top + below + 2), (FONT, 12)))?;
        }
        top += ROW_PX;
    }
    area.present()?;
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Names of elements in order of their start; panics where one is not closed or attributes are not quoted.
    pub(crate) fn elements(svg: &str) -> Vec<String> {
        let (mut open, mut names) = (Vec::new(), Vec::new());
        for part in svg.split('<').skip(1) {
            let (tag, text) = part.split_once('>').unwrap();
            assert!(!text.contains('&') || text.contains(';'), "{text}");
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name.trim()));
            } else if !tag.starts_with(['?', '!']) {
                let name = tag.split([' ', '/', '\n']).next().unwrap().to_owned();
                if !tag.ends_with('/') {
                    open.push(name.clone());
                }
                names.push(name);
            }
        }
        assert!(open.is_empty(), "{open:?} are not closed");
        names
    }

    #[test]
    fn the_picture_is_well_formed_and_has_every_bar() {
        let bars = [
            Bar { name: "encap <1 & 2>".to_owned(), forebay: 200.0, io: Some(100.0) },
            Bar { name: "miss".to_owned(), forebay: 400.4, io: None },
        ];
        let text = svg("a title", &bars).unwrap();
        let names = elements(&text);
        assert_eq!(names[0], "svg");
        // The ground and three bars.
        assert_eq!(names.iter().filter(|name| *name == "rect").count(), 4, "{text}");
        for words in ["a title", "encap &lt;1 &amp; 2&gt;", "miss", "\n200\n", "\n100\n", "\n400\n"] {
            assert!(text.contains(words), "{words:?} is not in\n{text}");
        }
    }

    #[test]
    fn no_bars_are_a_picture_too() {
        assert_eq!(elements(&svg("nothing", &[]).unwrap())[0], "svg");
    }
}
