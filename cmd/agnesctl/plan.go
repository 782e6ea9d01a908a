package main

import (
	"encoding/json"
	"fmt"

	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
)

// plan is what --dry-run prints: the calls that would be made.
type plan struct {
	DryRun bool          `json:"dry_run"`
	URL    string        `json:"url"`
	Calls  []plannedCall `json:"calls"`
}

// plannedCall is one call. Its body is a request type of the API, whose secrets
// print as [redacted].
type plannedCall struct {
	Method string `json:"method"`
	Path   string `json:"path"`
	Body   any    `json:"body,omitempty"`
	When   string `json:"when,omitempty"` // empty: in any case
}

func (a *app) printPlan(f cli.Format, address string, calls ...plannedCall) error {
	p := plan{DryRun: true, URL: address, Calls: calls}
	return cli.Print(a.env.Stdout, f, p, func(g *cli.Grid) {
		g.Line("These calls would be made to %s; nothing was sent that changes it.", address)
		g.Row("METHOD", "PATH", "WHEN", "BODY")
		for _, c := range calls {
			body := ""
			if c.Body != nil {
				encoded, err := json.Marshal(c.Body)
				if err != nil {
					encoded = fmt.Append(nil, err)
				}
				body = string(encoded)
			}
			g.Row(c.Method, c.Path, c.When, body)
		}
	})
}
