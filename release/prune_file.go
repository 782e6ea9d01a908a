package release

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Write writes the plan as JSON, one version after the other, for ReadPlan and
// for people.
func (p PrunePlan) Write(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(p); err != nil {
		return fmt.Errorf("write the plan: %w", err)
	}
	return nil
}

// ReadPlan reads what Write wrote; name is the file's, for errors. What Apply
// could not do to the letter is refused.
func ReadPlan(name string, content []byte) (PrunePlan, error) {
	var p PrunePlan
	dec := json.NewDecoder(bytes.NewReader(content))
	dec.DisallowUnknownFields()
	err := dec.Decode(&p)
	if err == nil && dec.More() {
		err = fmt.Errorf("there is more after its end")
	}
	if err != nil {
		return PrunePlan{}, problem.Wrap(err, problem.Invalid, "expected a plan of release-bot prune in "+name+", found something else", newPlan)
	}
	if p.Format != PlanFormat {
		return PrunePlan{}, problem.New(problem.Invalid, fmt.Sprintf("expected a plan of format %d in %s, found %d: another version of release-bot made it", PlanFormat, name, p.Format), newPlan)
	}
	return p, nil
}
