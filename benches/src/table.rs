//! Medians, ratios and the tables that show them, in Markdown.
//!
//! A ratio is the median of the ratios of each round, not the ratio of two medians: the machine may
//! be twice as fast in one round as in another, but hardly within one.

use std::collections::HashMap;

use crate::plan::{Figure, Goal, Kind, OURS};

/// Every figure of every round: by contestant and figure, one place a round.
pub(crate) struct Results {
    contestants: &'static [(&'static str, Kind)],
    /// The contestant that ratios are to.
    limit: &'static str,
    figures: HashMap<(&'static str, &'static str), Vec<Option<f64>>>,
}

impl Results {
    pub(crate) fn new(contestants: &'static [(&'static str, Kind)], limit: &'static str) -> Self {
        Self {
            contestants,
            limit,
            figures: HashMap::new(),
        }
    }

    pub(crate) fn add(&mut self, who: &'static str, figure: &'static str, value: Option<f64>) {
        self.figures.entry((who, figure)).or_default().push(value);
    }

    fn rounds(&self, who: &'static str, figure: &'static str) -> &[Option<f64>] {
        self.figures.get(&(who, figure)).map_or(&[], Vec::as_slice)
    }

    fn median(&self, who: &'static str, figure: &'static str) -> Option<f64> {
        median(self.rounds(who, figure).iter().copied().flatten().collect())
    }

    fn ratios(&self, who: &'static str, to: &'static str, figure: &'static str) -> Vec<f64> {
        let pairs = self.rounds(who, figure).iter().zip(self.rounds(to, figure));
        pairs
            .filter_map(|(one, other)| Some((*one)? / (*other)?))
            .collect()
    }

    fn best_peer(&self, figure: &'static str) -> Option<&'static str> {
        let peers = self
            .contestants
            .iter()
            .filter(|(_, kind)| *kind == Kind::Peer);
        let known = peers.filter_map(|(who, _)| Some((*who, self.median(who, figure)?)));
        known
            .min_by(|one, other| one.1.total_cmp(&other.1))
            .map(|(who, _)| who)
    }

    /// A median, with its ratio to the limit behind it.
    fn cell(&self, who: &'static str, figure: &'static str) -> String {
        let Some(value) = self.median(who, figure) else {
            return "-".to_owned();
        };
        match median(self.ratios(who, self.limit, figure)) {
            Some(ratio) if who != self.limit => format!("{} ({ratio:.2})", number(value)),
            _ => number(value),
        }
    }

    /// The ratio of ours to `to`, with the least and the greatest of the rounds.
    fn ours_to(&self, to: &'static str, figure: &'static str) -> String {
        let ratios = self.ratios(OURS, to, figure);
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let most = ratios.iter().copied().fold(0.0, f64::max);
        match median(ratios) {
            Some(ratio) => format!("{ratio:.2} [{least:.2}–{most:.2}]"),
            None => "-".to_owned(),
        }
    }

    fn verdict(&self, figure: &Figure) -> String {
        let (goal, reached) = match figure.goal {
            Goal::Open => return "-".to_owned(),
            Goal::Limit(times) => (
                format!("{times} × limit"),
                median(self.ratios(OURS, self.limit, figure.name)).map(|ratio| ratio <= times),
            ),
            Goal::Peer(times) => (
                format!("{times} × best peer"),
                self.best_peer(figure.name)
                    .and_then(|peer| median(self.ratios(OURS, peer, figure.name)))
                    .map(|ratio| ratio <= times),
            ),
            Goal::AtMost(most) => (
                number(most),
                self.median(OURS, figure.name).map(|value| value <= most),
            ),
        };
        match reached {
            Some(true) => format!("≤ {goal}: met"),
            Some(false) => format!("≤ {goal}: ABOVE"),
            None => format!("≤ {goal}"),
        }
    }

    /// Prints one table: a line a contestant, a column a figure, and below them how ours stands.
    pub(crate) fn print(&self, title: &str, figures: &[&Figure]) {
        let mut lines = vec![vec![String::new()]];
        lines[0].extend(figures.iter().map(|figure| figure.label.to_owned()));
        for (who, _) in self.contestants {
            let cells: Vec<_> = figures
                .iter()
                .map(|figure| self.cell(who, figure.name))
                .collect();
            if cells.iter().any(|cell| cell != "-") {
                lines.push([vec![format!("`{who}`")], cells].concat());
            }
        }
        if self.contestants.iter().any(|(_, kind)| *kind == Kind::Ours) {
            let to_limit = figures
                .iter()
                .map(|figure| self.ours_to(self.limit, figure.name));
            let to_peer = figures
                .iter()
                .map(|figure| match self.best_peer(figure.name) {
                    Some(peer) => format!("{} {peer}", self.ours_to(peer, figure.name)),
                    None => "-".to_owned(),
                });
            let goals = figures.iter().map(|figure| self.verdict(figure));
            lines.push([vec!["ours / limit".to_owned()], to_limit.collect()].concat());
            lines.push([vec!["ours / best peer".to_owned()], to_peer.collect()].concat());
            lines.push([vec!["goal".to_owned()], goals.collect()].concat());
        }
        println!("\n### {title}\n");
        print_lines(&lines);
    }
}

pub(crate) fn print_lines(lines: &[Vec<String>]) {
    let columns = lines[0].len();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: Vec<_> = (0..columns)
        .map(|column| width(column).unwrap_or(0))
        .collect();
    for (at, line) in lines.iter().enumerate() {
        let cells = line
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| {
                if column == 0 {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                }
            });
        println!("| {} |", cells.collect::<Vec<_>>().join(" | "));
        if at == 0 {
            let rules = widths
                .iter()
                .enumerate()
                .map(|(column, width)| match column {
                    0 => format!(":{}", "-".repeat(width + 1)),
                    _ => format!("{}:", "-".repeat(width + 1)),
                });
            println!("|{}|", rules.collect::<Vec<_>>().join("|"));
        }
    }
}

pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// Three figures that count, thousands parted.
pub(crate) fn number(value: f64) -> String {
    if value < 9.995 {
        return format!("{value:.2}");
    }
    if value < 99.95 {
        return format!("{value:.1}");
    }
    let whole = format!("{value:.0}");
    let mut parted = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            parted.push(',');
        }
        parted.push(digit);
    }
    parted
}
