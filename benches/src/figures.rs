//! What becomes of the runs: the median, and beside it the least and the greatest.

use serde_json::{Map, Value};

/// One figure over all runs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// The spread of some values; zeroes where there are none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (values.first(), values.last()) else { return Self::default() };
        let middle = values.len() / 2;
        let upper = values.get(middle).copied().unwrap_or(*max);
        let median = match values.get(middle.wrapping_sub(1)) {
            // An even number of runs has two middles.
            Some(lower) if values.len().is_multiple_of(2) => (lower + upper) / 2.0,
            _ => upper,
        };
        Self { median, min: *min, max: *max }
    }

    /// Puts the figure into an object: `name`, `name_min` and `name_max`, rounded to so many decimals.
    pub(crate) fn put(&self, object: &mut Map<String, Value>, name: &str, decimals: u8) {
        for (suffix, value) in [("", self.median), ("_min", self.min), ("_max", self.max)] {
            object.insert(format!("{name}{suffix}"), rounded(value, decimals));
        }
    }
}

/// A number with no more digits than it deserves; whole numbers without a point.
pub(crate) fn rounded(value: f64, decimals: u8) -> Value {
    if decimals == 0 {
        // Saturates, and NaN becomes zero.
        return Value::from(value.round() as u64);
    }
    let scale = 10_f64.powi(i32::from(decimals));
    Value::from((value * scale).round() / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_numbers_of_runs() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 10.0]), Spread { median: 3.0, min: 1.0, max: 10.0 });
        assert_eq!(Spread::of([7.0]), Spread { median: 7.0, min: 7.0, max: 7.0 });
        assert_eq!(Spread::of([5.0, 1.0]), Spread { median: 3.0, min: 1.0, max: 5.0 });
        assert_eq!(Spread::of([]), Spread::default());
    }

    #[test]
    fn json_has_three_names_and_few_digits() {
        let mut object = Map::new();
        Spread { median: 1.2345, min: 1.0, max: 2.0 }.put(&mut object, "cycles", 2);
        Spread { median: 12_345_678.9, min: 1.4, max: 2e7 }.put(&mut object, "pps", 0);
        assert_eq!(
            Value::Object(object).to_string(),
            r#"{"cycles":1.23,"cycles_max":2.0,"cycles_min":1.0,"pps":12345679,"pps_max":20000000,"pps_min":1}"#
        );
    }
}
