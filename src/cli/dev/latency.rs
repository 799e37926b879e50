//! How long a packet takes from one region to another: by the distance of their cities, or the same everywhere.

use std::{str::FromStr, time::Duration};

use crate::region::Region;

/// Light in fibre: two thirds of its speed in a vacuum.
const KM_PER_MS: f64 = 200.0;
/// How much longer than the great circle cables and routes are.
const DETOUR: f64 = 1.4;
/// Above this, probes would never be answered in time: they take four ways, and have a second.
const LONGEST: Duration = Duration::from_millis(200);
const EARTH_RADIUS_KM: f64 = 6371.0;

/// Fly's regions by their city's latitude and longitude, in degrees: <https://fly.io/docs/reference/regions/>.
const CITIES: &[(&str, f64, f64)] = &[
    ("ams", 52.4, 4.9),
    ("arn", 59.3, 18.1),
    ("atl", 33.7, -84.4),
    ("bog", 4.7, -74.1),
    ("bom", 19.1, 72.9),
    ("bos", 42.4, -71.1),
    ("cdg", 48.9, 2.4),
    ("den", 39.7, -105.0),
    ("dfw", 32.8, -96.8),
    ("ewr", 40.7, -74.2),
    ("eze", -34.6, -58.4),
    ("fra", 50.1, 8.7),
    ("gdl", 20.7, -103.3),
    ("gig", -22.9, -43.2),
    ("gru", -23.5, -46.6),
    ("hkg", 22.3, 114.2),
    ("iad", 39.0, -77.5),
    ("jnb", -26.2, 28.0),
    ("lax", 34.1, -118.2),
    ("lhr", 51.5, -0.1),
    ("mad", 40.4, -3.7),
    ("mia", 25.8, -80.2),
    ("nrt", 35.7, 139.7),
    ("ord", 41.9, -87.6),
    ("otp", 44.4, 26.1),
    ("phx", 33.4, -112.1),
    ("qro", 20.6, -100.4),
    ("scl", -33.4, -70.7),
    ("sea", 47.6, -122.3),
    ("sin", 1.35, 103.8),
    ("sjc", 37.3, -121.9),
    ("syd", -33.9, 151.2),
    ("waw", 52.2, 21.0),
    ("yul", 45.5, -73.6),
    ("yyz", 43.7, -79.4),
];

/// How long packets take between regions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Latency {
    /// As long as between the cities of these names.
    Realistic,
    /// So long between any two, one way.
    Fixed(Duration),
}

impl Latency {
    /// How long a packet takes from `from` to `to`.
    ///
    /// # Errors
    /// Nobody knows where one of them is.
    pub(super) fn between(self, from: &Region, to: &Region) -> Result<Duration, String> {
        match self {
            Self::Fixed(delay) => Ok(delay),
            Self::Realistic => {
                let milliseconds = kilometres(city(from)?, city(to)?) * DETOUR / KM_PER_MS;
                Ok(Duration::from_secs_f64(milliseconds / 1e3))
            }
        }
    }
}

impl FromStr for Latency {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "realistic" {
            return Ok(Self::Realistic);
        }
        match humantime::parse_duration(text) {
            Ok(delay) if delay <= LONGEST => Ok(Self::Fixed(delay)),
            Ok(_) => Err(format!("must be {LONGEST:?} or less")),
            Err(_) => Err("must be `realistic`, or a duration such as 50ms".to_owned()),
        }
    }
}

/// Latitude and longitude in radians.
fn city(region: &Region) -> Result<(f64, f64), String> {
    let found = CITIES.iter().find(|(name, ..)| *name == region.as_str());
    let place =
        |(_, latitude, longitude): &(_, f64, f64)| (latitude.to_radians(), longitude.to_radians());
    found.map(place).ok_or_else(|| {
        let known: Vec<_> = CITIES.iter().map(|(name, ..)| *name).collect();
        format!(
            "nobody knows where {region} is; known are {}",
            known.join(", ")
        )
    })
}

/// The haversine formula.
fn kilometres(from: (f64, f64), to: (f64, f64)) -> f64 {
    let half = |a: f64, b: f64| ((a - b) / 2.0).sin().powi(2);
    let chord = half(from.0, to.0) + from.0.cos() * to.0.cos() * half(from.1, to.1);
    2.0 * EARTH_RADIUS_KM * chord.sqrt().min(1.0).asin()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_those_of_the_map() {
        let there_and_back = |from: &str, to: &str| {
            let delay = Latency::Realistic.between(&from.parse().unwrap(), &to.parse().unwrap());
            delay.map(|delay| (2 * delay).as_millis())
        };
        assert_eq!(there_and_back("iad", "syd"), Ok(219));
        assert_eq!(there_and_back("syd", "iad"), Ok(219));
        assert_eq!(there_and_back("iad", "fra"), Ok(91));
        assert_eq!(there_and_back("lhr", "lhr"), Ok(0));
        let unknown = there_and_back("iad", "mars").unwrap_err();
        assert!(
            unknown.starts_with("nobody knows where mars is; known are ams, arn,"),
            "{unknown}"
        );
    }

    #[test]
    fn the_page_has_the_cities_at_the_same_places() {
        let places = include_str!("../../http/ui/places.js");
        for (name, latitude, longitude) in CITIES {
            let (start, end) = (
                format!("  {name}: [\""),
                format!("\", {latitude:?}, {longitude:?}],"),
            );
            let has = |line: &str| line.starts_with(&start) && line.ends_with(&end);
            assert!(places.lines().any(has), "{start}…{end}");
        }
    }

    #[test]
    fn a_latency_is_realistic_or_a_duration() {
        let fixed = Latency::Fixed(Duration::from_millis(50));
        assert_eq!("50ms".parse(), Ok(fixed));
        assert_eq!("realistic".parse(), Ok(Latency::Realistic));
        for bad in ["", "50", "fast", "1s"] {
            bad.parse::<Latency>().unwrap_err();
        }
    }
}
