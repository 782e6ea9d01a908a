package smoke

import "time"

// Verdict is what a smoke test found. Only Fail speaks against the release:
// trouble with the machinery around it is Inconclusive.
type Verdict string

// The three verdicts.
const (
	Pass         Verdict = "pass"
	Fail         Verdict = "fail"
	Inconclusive Verdict = "inconclusive"
)

// Report is a whole smoke test. Its JSON is a contract: fields are added, never
// changed.
type Report struct {
	Verdict   Verdict   `json:"verdict"`
	URL       string    `json:"url"`
	Version   string    `json:"version,omitempty"` // as the first health answer said
	Profile   string    `json:"profile"`
	StartedAt time.Time `json:"started_at"`
	ElapsedMS int64     `json:"elapsed_ms"`
	Steps     []Step    `json:"steps"`
	Warnings  []string  `json:"warnings,omitempty"` // what the test itself left undone
}

// Step is one request and what came of it.
type Step struct {
	Name      string  `json:"name"`
	OK        bool    `json:"ok"`
	Verdict   Verdict `json:"verdict,omitempty"` // empty where the step was not run
	Skipped   bool    `json:"skipped,omitempty"` // not run, since one before it was not OK
	Status    int     `json:"status,omitempty"`  // of HTTP; 0 where no answer came
	ElapsedMS int64   `json:"elapsed_ms"`
	Detail    string  `json:"detail"`             // what was expected and found
	Hint      string  `json:"hint,omitempty"`     // how to mend it
	Request   string  `json:"request,omitempty"`  // method, path and body, secrets redacted
	Response  string  `json:"response,omitempty"` // the beginning of the answer, secrets redacted
}

// Failed returns the step that the verdict comes from; nil for a pass.
func (r Report) Failed() *Step {
	for i, s := range r.Steps {
		if !s.OK && !s.Skipped {
			return &r.Steps[i]
		}
	}
	return nil
}
