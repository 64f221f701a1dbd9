//! What the tour's agents run: plain `sh`, on whatever repository it is.

/// The file that the first agent leaves.
pub(super) const REPORT: &str = "MOSAIC_TOUR.md";

/// Looks round the repository, writes a report, commits it if there is a git to commit with. If not, Mosaic commits
/// what was left.
pub(super) fn survey() -> String {
    format!(
        r##"echo "looking round"
files=$(find . -path ./.git -prune -o -type f -print | wc -l | tr -d ' ')
lines=$(find . -path ./.git -prune -o -type f -print | head -n 2000 | tr '\n' '\0' | xargs -0 cat 2>/dev/null | wc -l | tr -d ' ')
echo "found $files files, $lines lines"
sleep 0.3
{{
  echo "# What an agent saw"
  echo
  echo "$files files, $lines lines. At the top:"
  echo
  ls | head -n 12 | sed 's/^/- /'
}} > {REPORT}
echo "wrote {REPORT}"
sleep 0.3
if git add {REPORT} 2>/dev/null && git -c user.name=Agent -c user.email=agent@mosaic.invalid commit -q -m "Say what is here" 2>/dev/null
then echo "committed it"
else echo "left it uncommitted: Mosaic commits it"
fi
"##
    )
}

/// Works for ever, with a helper that has left its session and its parent, as some tools do.
pub(super) fn endless(marker: &str) -> String {
    format!(
        r#": {marker}
if command -v setsid >/dev/null
then setsid sh -c 'while :; do sleep 1; done; : {marker}' >/dev/null 2>&1 &
else (sh -c 'while :; do sleep 1; done; : {marker}' >/dev/null 2>&1 &)
fi
step=0
while :
do step=$((step + 1)); echo "step $step of many"; echo "$step" > PROGRESS; sleep 0.4
done
"#
    )
}
