//! Reads tide gauge records and finds the high and low waters in them.
//!
//! A record is a line such as `2024-03-01T06:10 3.42 ok`. Gauges drop out, repeat themselves after
//! a restart and spike when a boat passes, so a series is cleaned before anything is derived.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Minutes since the start of the year 2000, which is all the calendar a tide needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Minute(pub i64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    Ok,
    Suspect,
    Missing,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    pub at: Minute,
    pub metres: f64,
    pub flag: Flag,
}

#[derive(Debug, PartialEq)]
pub enum ParseError {
    Fields { found: usize },
    Time(String),
    Level(String),
    Flag(String),
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fields { found } => write!(f, "expected 3 fields, found {found}"),
            Self::Time(text) => write!(f, "{text:?} is no time like 2024-03-01T06:10"),
            Self::Level(text) => write!(f, "{text:?} is no level in metres"),
            Self::Flag(text) => write!(f, "{text:?} is none of ok, suspect, missing"),
        }
    }
}

impl std::error::Error for ParseError {}

impl FromStr for Minute {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_time(text).ok_or_else(|| ParseError::Time(text.to_owned()))
    }
}

fn parse_time(text: &str) -> Option<Minute> {
    let (date, clock) = text.split_once('T')?;
    let mut parts = date.splitn(3, '-').map(|p| p.parse::<i64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    let (hour, minute) = clock.split_once(':')?;
    let (hour, minute) = (hour.parse::<i64>().ok()?, minute.parse::<i64>().ok()?);
    let valid = (2000..2100).contains(&year)
        && (1..=12).contains(&month)
        && (1..=days_in(year, month)).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute);
    if !valid {
        return None;
    }
    let whole_years: i64 = (2000..year).map(|y| if is_leap(y) { 366 } else { 365 }).sum();
    let whole_months: i64 = (1..month).map(|m| days_in(year, m)).sum();
    let days = whole_years + whole_months + day - 1;
    Some(Minute((days * 24 + hour) * 60 + minute))
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

impl FromStr for Reading {
    type Err = ParseError;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [time, level, flag] = fields[..] else {
            return Err(ParseError::Fields { found: fields.len() });
        };
        let flag = match flag {
            "ok" => Flag::Ok,
            "suspect" => Flag::Suspect,
            "missing" => Flag::Missing,
            other => return Err(ParseError::Flag(other.to_owned())),
        };
        let metres = level
            .parse()
            .ok()
            .filter(|m: &f64| m.is_finite())
            .ok_or_else(|| ParseError::Level(level.to_owned()))?;
        Ok(Reading { at: time.parse()?, metres, flag })
    }
}

/// Readings in order of time, one for each minute at most.
#[derive(Debug, Default)]
pub struct Series {
    levels: BTreeMap<Minute, f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    High,
    Low,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Extreme {
    pub kind: Kind,
    pub at: Minute,
    pub metres: f64,
}

impl Series {
    /// Parses a whole file. Empty lines and lines that start with `#` are skipped; the first bad
    /// line ends it, with its number counted from one.
    pub fn parse(text: &str) -> Result<Self, (usize, ParseError)> {
        let mut series = Self::default();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            series.push(line.parse().map_err(|error| (index + 1, error))?);
        }
        Ok(series)
    }

    /// Keeps a good reading; of two for the same minute the later one counts.
    pub fn push(&mut self, reading: Reading) {
        if reading.flag == Flag::Ok {
            self.levels.insert(reading.at, reading.metres);
        }
    }

    pub fn len(&self) -> usize {
        self.levels.len()
    }

    pub fn is_empty(&self) -> bool {
        self.levels.is_empty()
    }

    /// Removes single readings that differ from both neighbours by more than `limit` metres in the
    /// same direction. Returns how many there were.
    pub fn remove_spikes(&mut self, limit: f64) -> usize {
        let points: Vec<(Minute, f64)> = self.levels.iter().map(|(&t, &m)| (t, m)).collect();
        let spikes: Vec<Minute> = points
            .windows(3)
            .filter(|w| {
                let (before, after) = (w[1].1 - w[0].1, w[1].1 - w[2].1);
                before.abs() > limit && after.abs() > limit && before.signum() == after.signum()
            })
            .map(|w| w[1].0)
            .collect();
        for at in &spikes {
            self.levels.remove(at);
        }
        spikes.len()
    }

    /// The level at a minute, on a straight line between its neighbours unless they are further
    /// apart than `longest_gap` minutes.
    pub fn level_at(&self, at: Minute, longest_gap: i64) -> Option<f64> {
        let (&t0, &m0) = self.levels.range(..=at).next_back()?;
        if t0 == at {
            return Some(m0);
        }
        let (&t1, &m1) = self.levels.range(at..).next()?;
        let gap = t1.0 - t0.0;
        (gap <= longest_gap).then(|| m0 + (m1 - m0) * (at.0 - t0.0) as f64 / gap as f64)
    }

    /// High and low waters, alternating. A turn counts once the water has moved `threshold` metres
    /// away from it, which keeps waves from being taken for tides. Where the series starts is no
    /// turn: nobody knows what the water did before.
    pub fn extremes(&self, threshold: f64) -> Vec<Extreme> {
        let mut found = Vec::new();
        let mut points = self.levels.iter().map(|(&t, &m)| (t, m));
        let Some(first) = points.next() else {
            return found;
        };
        let (mut highest, mut lowest) = (first, first);
        let mut looking_for = None;
        for (at, metres) in points {
            if metres > highest.1 {
                highest = (at, metres);
            }
            if metres < lowest.1 {
                lowest = (at, metres);
            }
            if looking_for != Some(Kind::Low) && highest.1 - metres >= threshold {
                if highest.0 != first.0 {
                    found.push(Extreme { kind: Kind::High, at: highest.0, metres: highest.1 });
                }
                lowest = (at, metres);
                looking_for = Some(Kind::Low);
            } else if looking_for != Some(Kind::High) && metres - lowest.1 >= threshold {
                if lowest.0 != first.0 {
                    found.push(Extreme { kind: Kind::Low, at: lowest.0, metres: lowest.1 });
                }
                highest = (at, metres);
                looking_for = Some(Kind::High);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tide(minutes: i64) -> Series {
        let mut series = Series::default();
        for t in (0..minutes).step_by(10) {
            let phase = t as f64 / 745.0 * std::f64::consts::TAU;
            series.push(Reading { at: Minute(t), metres: 3.0 + 2.0 * phase.sin(), flag: Flag::Ok });
        }
        series
    }

    #[test]
    fn times_are_checked() {
        assert_eq!("2000-03-01T00:01".parse(), Ok(Minute(60 * 24 * 60 + 1)));
        assert!("2023-02-29T12:00".parse::<Minute>().is_err());
        assert!("2024-02-29T24:00".parse::<Minute>().is_err());
    }

    #[test]
    fn a_bad_line_is_named() {
        let text = "# gauge 7\n2024-03-01T06:10 3.42 ok\n2024-03-01T06:20 wet ok\n";
        assert_eq!(Series::parse(text).unwrap_err(), (3, ParseError::Level("wet".into())));
    }

    #[test]
    fn highs_and_lows_alternate() {
        let kinds: Vec<Kind> = tide(1490).extremes(0.5).iter().map(|e| e.kind).collect();
        assert_eq!(kinds, [Kind::High, Kind::Low, Kind::High, Kind::Low]);
    }

    #[test]
    fn spikes_go_and_gaps_stay() {
        let mut series = tide(300);
        series.push(Reading { at: Minute(55), metres: 9.0, flag: Flag::Ok });
        assert_eq!(series.remove_spikes(1.0), 1);
        assert!(series.level_at(Minute(55), 15).is_some_and(|m| m < 5.0));
        assert_eq!(series.level_at(Minute(55), 5), None);
    }
}
