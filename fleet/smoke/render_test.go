package smoke_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke"
	"github.com/keboola/agnes-the-ai-analyst/internal/golden"
)

// told is a report whose instance tries to get out of each form.
func told() smoke.Report {
	return smoke.Report{
		Verdict: smoke.Fail, URL: "http://127.0.0.1:8000", Version: "2026.04.3", Profile: "full",
		StartedAt: time.Date(2026, 4, 9, 12, 0, 0, 0, time.UTC), ElapsedMS: 1234,
		Steps: []smoke.Step{
			{
				Name: "health", OK: true, Verdict: smoke.Pass, Status: 200, ElapsedMS: 4, Detail: "The instance is healthy.",
				Request: "GET /api/health", Response: `{"status":"healthy"}`,
			},
			{
				Name: "token", Verdict: smoke.Fail, Status: 500, ElapsedMS: 1230, Detail: "Expected 200, found 500: <b>@octocat</b> | fixes #1\n\n## `x` \x1b[31m]]>",
				Hint: "Read the log.", Request: `POST /auth/token {"password":"[redacted]"}`, Response: "```\n</system-out>]]>&\x00\u202e\x1b[2J",
			},
			{Name: "catalog", Skipped: true, Detail: "Not run, for token was not answered well."},
		},
		Warnings: []string{"The account smoke-a@agnes.invalid could not be removed."},
	}
}

func TestTheReportAsMarkdown(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := smoke.WriteMarkdown(&out, told()); err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, filepath.Join("testdata", "report.md.golden"), out.Bytes())
	for _, harm := range []string{"@octocat", "<b>", "#1\n", "\x1b", "\x00", "\u202e", "\n## `x`"} {
		if strings.Contains(out.String(), harm) {
			t.Errorf("the instance's %q gets through:\n%s", harm, out.String())
		}
	}
}

func TestTheReportAsJUnit(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := smoke.WriteJUnit(&out, told()); err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, filepath.Join("testdata", "report.xml.golden"), out.Bytes())
	dec := xml.NewDecoder(bytes.NewReader(out.Bytes()))
	for {
		if _, err := dec.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("no XML: %v\n%s", err, out.String())
		}
	}
	for _, harm := range []string{"\x1b", "\ufffd", "\u202e", "</system-out>]]>"} {
		if strings.Contains(out.String(), harm) {
			t.Errorf("the instance's %q gets through:\n%s", harm, out.String())
		}
	}
}

// counts are the numbers that a CI system shows, taken from the cases.
func counts(t *testing.T, r smoke.Report) (tests, failures, broken int) {
	t.Helper()
	var out bytes.Buffer
	if err := smoke.WriteJUnit(&out, r); err != nil {
		t.Fatal(err)
	}
	var suites struct {
		Tests    int `xml:"tests,attr"`
		Failures int `xml:"failures,attr"`
		Errors   int `xml:"errors,attr"`
		Cases    []struct {
			Failure *struct{} `xml:"failure"`
			Error   *struct{} `xml:"error"`
		} `xml:"testsuite>testcase"`
	}
	if err := xml.Unmarshal(out.Bytes(), &suites); err != nil {
		t.Fatal(err)
	}
	for _, c := range suites.Cases {
		tests++
		if c.Failure != nil {
			failures++
		}
		if c.Error != nil {
			broken++
		}
	}
	if tests != suites.Tests || failures != suites.Failures || broken != suites.Errors {
		t.Errorf("the head says %d, %d, %d and the cases %d, %d, %d", suites.Tests, suites.Failures, suites.Errors, tests, failures, broken)
	}
	return tests, failures, broken
}

func TestNoJUnitCaseLooksGreenThatWasNotRun(t *testing.T) {
	t.Parallel()
	failed := told()
	undecided := told()
	undecided.Verdict, undecided.Steps[1].Verdict = smoke.Inconclusive, smoke.Inconclusive
	passed := told()
	passed.Verdict, passed.Steps, passed.Warnings = smoke.Pass, passed.Steps[:1], nil
	left := passed
	left.Verdict, left.Warnings = smoke.Fail, []string{"The account is left."}
	for name, tt := range map[string]struct {
		report smoke.Report
		want   [3]int
	}{
		"fail": {failed, [3]int{3, 2, 0}}, "inconclusive": {undecided, [3]int{3, 0, 2}},
		"pass": {passed, [3]int{1, 0, 0}}, "clean-up": {left, [3]int{2, 1, 0}},
	} {
		tests, failures, broken := counts(t, tt.report)
		if got := [3]int{tests, failures, broken}; got != tt.want {
			t.Errorf("%s: tests, failures, errors are %v, want %v", name, got, tt.want)
		}
	}
}
