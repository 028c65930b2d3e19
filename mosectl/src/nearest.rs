//! The known word that a mistyped one was probably meant to be.

/// The most similar of `known`, if any is similar enough to be worth a question.
pub(crate) fn nearest<'k>(text: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    // No word is nearly as long, and the search takes time in proportion.
    if text.len() > 100 {
        return None;
    }
    let text = text.to_lowercase();
    let close = |word: &'k str| {
        let part = text.len() >= 3 && word.len() >= 3 && (word.contains(&text) || text.contains(word));
        let distance = distance(&text, word);
        // A third of the letters may be wrong; a part of a word counts as two wrong ones.
        let limit = text.chars().count().max(word.chars().count()).div_ceil(3);
        match (distance <= limit, part) {
            (true, _) => Some((distance.min(2), distance, word)),
            (false, true) => Some((2, distance, word)),
            (false, false) => None,
        }
    };
    known.into_iter().filter_map(close).min().map(|(_, _, word)| word)
}

/// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b`.
///
/// Source: Damerau, "A technique for computer detection and correction of spelling errors", 1964, in its restricted form.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_word() {
        let known = [
            "name",
            "worker",
            "replicas",
            "max_batch_size",
            "max_wait",
            "timeout",
            "env",
            "labels",
        ];
        for (text, meant) in [
            ("replica", Some("replicas")),
            ("Replicas", Some("replicas")),
            ("workre", Some("worker")),
            ("wait", Some("max_wait")),
            ("batch_size", Some("max_batch_size")),
            ("max_batchsize", Some("max_batch_size")),
            ("time_out", Some("timeout")),
            ("environment", Some("env")),
            ("gpu", None),
            ("", None),
        ] {
            assert_eq!(nearest(text, known), meant, "{text}");
        }
    }
}
