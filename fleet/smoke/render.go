package smoke

import (
	"cmp"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode"
)

// cleanUpName names what is no step, but can cost the verdict all the same: the
// removal of the throw-away account.
const cleanUpName = "clean-up"

// Forms of a report beside its JSON, with the elements and attributes that CI
// systems read of JUnit's XML.
type (
	junitSuites struct {
		XMLName  xml.Name     `xml:"testsuites"`
		Name     string       `xml:"name,attr"`
		Tests    int          `xml:"tests,attr"`
		Failures int          `xml:"failures,attr"`
		Errors   int          `xml:"errors,attr"`
		Time     string       `xml:"time,attr"`
		Suites   []junitSuite `xml:"testsuite"`
	}
	junitSuite struct {
		Name       string          `xml:"name,attr"`
		Tests      int             `xml:"tests,attr"`
		Failures   int             `xml:"failures,attr"`
		Errors     int             `xml:"errors,attr"`
		Skipped    int             `xml:"skipped,attr"`
		Time       string          `xml:"time,attr"`
		Timestamp  string          `xml:"timestamp,attr"`
		Properties []junitProperty `xml:"properties>property"`
		Cases      []junitCase     `xml:"testcase"`
	}
	junitProperty struct {
		Name  string `xml:"name,attr"`
		Value string `xml:"value,attr"`
	}
	junitCase struct {
		Class   string        `xml:"classname,attr"`
		Name    string        `xml:"name,attr"`
		Time    string        `xml:"time,attr"`
		Failure *junitTrouble `xml:"failure,omitempty"`
		Error   *junitTrouble `xml:"error,omitempty"`
		Out     string        `xml:"system-out,omitempty"`
	}
	junitTrouble struct {
		Message string `xml:"message,attr"`
		Type    string `xml:"type,attr"`
		Text    string `xml:",chardata"`
	}
)

// WriteJUnit writes a report as JUnit XML, one test case a step. A failed step is
// a failure, an inconclusive one an error; one that was not run is what kept it
// from running, so that no skipped case looks green.
func WriteJUnit(w io.Writer, r Report) error {
	suite := junitSuite{
		Name: "agnes smoke " + r.URL, Time: seconds(r.ElapsedMS), Timestamp: r.StartedAt.UTC().Format("2006-01-02T15:04:05"),
		Properties: []junitProperty{
			{"verdict", string(r.Verdict)},
			{"version", r.Version},
			{"profile", r.Profile},
		},
	}
	for _, s := range r.rows() {
		c := junitCase{Class: "agnes.smoke", Name: s.Name, Time: seconds(s.ElapsedMS)}
		if s.Request != "" {
			c.Out = harmless(s.Request + "\n\n" + answered(s) + "\n")
		}
		trouble := &junitTrouble{Message: harmless(s.Detail), Type: string(s.Verdict), Text: harmless(s.Detail + "\n" + s.Hint)}
		switch {
		case s.OK:
		case s.Verdict == Inconclusive:
			c.Error = trouble
			suite.Errors++
		default:
			c.Failure = trouble
			suite.Failures++
		}
		suite.Cases = append(suite.Cases, c)
	}
	suite.Tests = len(suite.Cases)
	out, err := xml.MarshalIndent(junitSuites{
		Name: "agnes smoke", Tests: suite.Tests, Failures: suite.Failures, Errors: suite.Errors, Time: suite.Time, Suites: []junitSuite{suite},
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the report as XML: %w", err)
	}
	_, err = fmt.Fprintf(w, "%s%s\n", xml.Header, out)
	return err
}

// rows returns the steps, and the clean-up where that cost the verdict. A step
// that was not run takes the verdict of the whole.
func (r Report) rows() []Step {
	rows := append([]Step{}, r.Steps...)
	for i := range rows {
		if rows[i].Skipped {
			rows[i].Verdict = r.Verdict
		}
	}
	if r.Verdict != Pass && r.Failed() == nil {
		rows = append(rows, Step{Name: cleanUpName, Verdict: r.Verdict, Detail: strings.Join(r.Warnings, " ")})
	}
	return rows
}

func answered(s Step) string {
	if s.Status == 0 {
		return "no answer"
	}
	return strings.TrimSpace(fmt.Sprintf("%d %s\n%s", s.Status, http.StatusText(s.Status), s.Response))
}

func seconds(ms int64) string {
	return fmt.Sprintf("%.3f", (time.Duration(ms) * time.Millisecond).Seconds())
}

// WriteMarkdown writes a report for an issue or a job's summary: a table of the
// steps, and the request and answer of the one that failed. What the instance
// said can neither mention people nor draw anything.
func WriteMarkdown(w io.Writer, r Report) error {
	var b strings.Builder
	fmt.Fprintf(&b, "## Smoke test: %s\n\n", r.Verdict)
	fmt.Fprintf(&b, "%s, version %s, profile %s, %s, %s s.\n\n", plain(r.URL), plain(cmp.Or(r.Version, "unknown")), plain(r.Profile),
		r.StartedAt.UTC().Format(time.RFC3339), seconds(r.ElapsedMS))
	b.WriteString("| step | verdict | status | seconds | detail |\n|---|---|--:|--:|---|\n")
	for _, s := range r.rows() {
		verdict, status := string(s.Verdict), ""
		if s.Skipped {
			verdict = "not run"
		}
		if s.Status != 0 {
			status = fmt.Sprint(s.Status)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", s.Name, verdict, status, seconds(s.ElapsedMS), plain(s.Detail))
	}
	for _, warning := range r.Warnings {
		fmt.Fprintf(&b, "\nWarning: %s\n", plain(warning))
	}
	if s := r.Failed(); s != nil {
		if s.Hint != "" {
			fmt.Fprintf(&b, "\nNext: %s\n", plain(s.Hint))
		}
		if s.Request != "" {
			fmt.Fprintf(&b, "\n%s\n", fenced(s.Request+"\n\n"+answered(*s)))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// plain returns text as one line of Markdown that reads as it is.
func plain(text string) string {
	var b strings.Builder
	for _, r := range strings.Join(strings.Fields(text), " ") {
		switch {
		case strings.ContainsRune("&<>|`*_[]@#~\\", r):
			fmt.Fprintf(&b, "&#%d;", r)
		case printable(r):
			b.WriteRune(r)
		}
	}
	return b.String()
}

// fenced returns text as a code block, whose fence is longer than any in it.
func fenced(text string) string {
	fence := "```"
	for strings.Contains(text, fence) {
		fence += "`"
	}
	return fence + "text\n" + harmless(text) + "\n" + fence
}

// harmless takes out what drives a terminal or turns the direction of writing.
func harmless(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || printable(r) {
			return r
		}
		return -1
	}, text)
}

func printable(r rune) bool { return !unicode.IsControl(r) && !unicode.Is(unicode.Cf, r) }
