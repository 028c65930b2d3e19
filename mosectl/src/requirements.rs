//! Requirements files, as the lines that nodes install.

use std::path::Path;

use mosec_types::spec::check_requirement;

/// The lines of a requirements file, or what is wrong with it.
pub(crate) fn read(path: &Path) -> Result<Vec<String>, String> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    lines_of(&text).map_err(|problem| format!("{}:{problem}", path.display()))
}

/// Takes away what would put another `mosec` before the one that the workers run with. What it was.
///
/// Services written for MOSEC name it, as a rule; its package and this one have the same modules.
pub(crate) fn without_mosec(lines: &mut Vec<String>) -> Vec<String> {
    lines.extract_if(.., |line| is_mosec(line)).collect()
}

fn is_mosec(line: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let end = line.find(|c| !is_part(c)).unwrap_or(line.len());
    // As package names are compared.
    let name = line[..end].to_ascii_lowercase().replace(['_', '.'], "-");
    name == "mosec" || name == "mosec-cluster"
}

/// Joins continued lines, and leaves out comments and empty ones. An error begins with the line's number.
fn lines_of(text: &str) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    // A line that goes on, and where it began.
    let mut open: Option<(usize, String)> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let (start, before) = open.take().unwrap_or((number, String::new()));
        // Comments end lines that go on, too.
        let line = before + without_comment(line);
        match line.strip_suffix('\\') {
            Some(line) => open = Some((start, line.to_owned())),
            None => found.push((start, line)),
        }
    }
    found.extend(open);
    let mut lines = Vec::new();
    for (number, line) in found {
        let line = line.trim();
        if !line.is_empty() {
            check_requirement(line).map_err(|problem| format!("{number}: {problem}"))?;
            lines.push(line.to_owned());
        }
    }
    Ok(lines)
}

/// A comment begins at the line's start or behind a blank: URLs have a `#` of their own.
fn without_comment(line: &str) -> &str {
    let begins = |at: usize| at == 0 || line[..at].ends_with([' ', '\t']);
    let comment = line.match_indices('#').map(|(at, _)| at).find(|&at| begins(at));
    comment.map_or(line, |at| &line[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_what_pip_would_read() {
        let text = "# what we need\nnumpy >= 2  # arrays\n\n  torch==2.5 \\\n  --hash=sha256:00 \\\n  --hash=sha256:11\n\
                    x @ https://example.org/x.zip#egg=x\n--no-index\nlast \\";
        let expected = [
            "numpy >= 2",
            "torch==2.5   --hash=sha256:00   --hash=sha256:11",
            "x @ https://example.org/x.zip#egg=x",
            "--no-index",
            "last",
        ];
        assert_eq!(lines_of(text).unwrap(), expected);
        assert_eq!(lines_of("").unwrap(), [""; 0]);
    }

    #[test]
    fn mosec_itself_is_there_already() {
        let mut lines = [
            "mosec",
            "numpy",
            "Mosec[typed] >= 0.9",
            "mosec-extras",
            "mosec_cluster==1",
        ]
        .map(String::from)
        .to_vec();
        let taken = without_mosec(&mut lines);
        assert_eq!(taken, ["mosec", "Mosec[typed] >= 0.9", "mosec_cluster==1"]);
        assert_eq!(lines, ["numpy", "mosec-extras"]);
    }

    #[test]
    fn a_line_that_names_a_file_is_told() {
        let error = lines_of("numpy\n\n-r more.txt\n").unwrap_err();
        assert!(
            error.starts_with("3: expected a package") && error.contains("\"-r more.txt\""),
            "{error}"
        );
        let error = read(Path::new("/no/requirements.txt")).unwrap_err();
        assert!(error.starts_with("cannot read /no/requirements.txt: "), "{error}");
    }
}
