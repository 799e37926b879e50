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

/// The page's map, which has a line for each of Fly's regions: `  ams: ["Amsterdam", 52.4, 4.9],`.
const PLACES: &str = include_str!("../../http/ui/places.js");

/// How long packets take between regions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Latency {
    /// By the distance of the cities.
    Realistic,
    /// The same between any two, one way.
    Fixed(Duration),
}

impl Latency {
    /// How long a packet takes from `from` to `to`; an error where one of them is not on the map.
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

/// Each region of the map with its city's latitude and longitude in degrees.
fn cities() -> impl Iterator<Item = (&'static str, f64, f64)> {
    PLACES.lines().filter_map(|line| {
        let (name, city) = line.trim().strip_suffix("],")?.split_once(": [")?;
        let mut numbers = city.rsplitn(3, ", ").map(str::parse);
        let (longitude, latitude) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some((name, latitude, longitude))
    })
}

/// Latitude and longitude in radians.
fn city(region: &Region) -> Result<(f64, f64), String> {
    let found = cities().find(|(name, ..)| *name == region.as_str());
    let place =
        |(_, latitude, longitude): (_, f64, f64)| (latitude.to_radians(), longitude.to_radians());
    found.map(place).ok_or_else(|| {
        let known: Vec<_> = cities().map(|(name, ..)| name).collect();
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
        assert_eq!(cities().count(), 35);
        let unknown = there_and_back("iad", "mars").unwrap_err();
        assert!(
            unknown.starts_with("nobody knows where mars is; known are ams, arn,"),
            "{unknown}"
        );
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
