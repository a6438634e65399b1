//! Bars as an SVG: for each load and policy, what share of its core the worker takes, and beside it the latency at p99.
//!
//! The picture says nothing that the table does not; it holds no figure that was not measured.

use plotters::prelude::*;

use crate::error::BenchError;

const WIDTH_PX: u32 = 980;
const TITLE_PX: i32 = 64;
const HEAD_PX: i32 = 26;
const ROW_PX: i32 = 18;
const BAR_PX: i32 = 13;
/// Where the bars of the processor and those of latency begin, and how long they are at most.
const CPU_AT_PX: i32 = 190;
const LATENCY_AT_PX: i32 = 590;
const LONGEST_PX: f64 = 320.0;
const CPU: RGBColor = RGBColor(31, 119, 180);
const LATENCY: RGBColor = RGBColor(255, 127, 14);
const FONT: &str = "sans-serif";

/// A load.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group {
    pub name: String,
    pub pairs: Vec<Pair>,
}

/// A policy under it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pair {
    pub name: String,
    pub cpu_percent: Option<f64>,
    pub p99_us: Option<f64>,
}

/// Draws the bars. Those of latency are as long as fits under each load on its own.
pub(crate) fn svg(title: &str, groups: &[Group]) -> Result<String, BenchError> {
    let mut text = String::new();
    draw(&mut text, title, groups).map_err(|error| BenchError::Chart { reason: error.to_string() })?;
    Ok(text)
}

fn draw(text: &mut String, title: &str, groups: &[Group]) -> Result<(), Box<dyn std::error::Error>> {
    let rows: usize = groups.iter().map(|group| group.pairs.len()).sum();
    let height = TITLE_PX + HEAD_PX * groups.len() as i32 + ROW_PX * rows as i32 + ROW_PX;
    let area = SVGBackend::with_string(text, (WIDTH_PX, height.unsigned_abs())).into_drawing_area();
    area.fill(&WHITE)?;
    area.draw(&Text::new(title.to_owned(), (12, 12), (FONT, 15)))?;
    for (words, at, color) in [
        ("% of the worker's core, less is better", CPU_AT_PX, CPU),
        ("latency p99, us: first packets", LATENCY_AT_PX, LATENCY),
    ] {
        area.draw(&Text::new(words, (at, 40), (FONT, 13).into_font().color(&color)))?;
    }
    let mut top = TITLE_PX;
    for group in groups {
        area.draw(&Text::new(group.name.clone(), (12, top + 6), (FONT, 14)))?;
        top += HEAD_PX;
        let longest_us = group.pairs.iter().filter_map(|pair| pair.p99_us).fold(1.0, f64::max);
        for pair in &group.pairs {
            area.draw(&Text::new(pair.name.clone(), (30, top), (FONT, 13)))?;
            let bars = [
                (pair.cpu_percent, 100.0, CPU_AT_PX, CPU),
                (pair.p99_us, longest_us, LATENCY_AT_PX, LATENCY),
            ];
            for (value, longest, from, color) in bars {
                let Some(value) = value else { continue };
                // Saturates.
                let end = from + (value * LONGEST_PX / longest) as i32;
                area.draw(&Rectangle::new([(from, top), (end, top + BAR_PX)], color.filled()))?;
                area.draw(&Text::new(format!("{value:.1}"), (end + 6, top), (FONT, 12)))?;
            }
            top += ROW_PX;
        }
    }
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart::tests::elements;

    #[test]
    fn the_picture_is_well_formed_and_has_every_bar() {
        let pair = |name: &str, cpu_percent, p99_us| Pair { name: name.to_owned(), cpu_percent, p99_us };
        let groups = [
            Group { name: "none".to_owned(), pairs: vec![pair("a <b>", Some(0.25), None)] },
            Group {
                name: "1000 packets/s".to_owned(),
                pairs: vec![pair("busy-poll", Some(100.0), Some(2.5)), pair("rest", None, Some(40.0))],
            },
        ];
        let text = svg("a title", &groups).unwrap();
        let names = elements(&text);
        // The ground and four bars.
        assert_eq!(names.iter().filter(|name| *name == "rect").count(), 5, "{text}");
        for words in ["a title", "a &lt;b&gt;", "1000 packets/s", "\n0.2\n", "\n100.0\n", "\n40.0\n"] {
            assert!(text.contains(words), "{words:?} is not in\n{text}");
        }
        assert_eq!(elements(&svg("nothing", &[]).unwrap())[0], "svg");
    }
}
