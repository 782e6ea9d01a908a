package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/google/uuid"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Record makes an answer the outputs and the summary, a Markdown text, of the
// step of a GitHub workflow that runs this program, and does nothing elsewhere.
func Record(env Env, value any, summary string) error {
	if path := env.Getenv("GITHUB_OUTPUT"); path != "" {
		out, err := outputs(value)
		if err != nil {
			return err
		}
		if err := appendTo(path, out); err != nil {
			return err
		}
	}
	if path := env.Getenv("GITHUB_STEP_SUMMARY"); path != "" {
		return appendTo(path, summary)
	}
	return nil
}

// outputs writes the top-level fields of an answer in the format of the
// workflow command file: name<<DELIMITER, lines, DELIMITER. Strings are bare,
// everything else is JSON.
func outputs(value any) (string, error) {
	encoded, err := json.Marshal(value)
	if err != nil {
		return "", fmt.Errorf("encode the step's outputs: %w", err)
	}
	fields := map[string]json.RawMessage{}
	if json.Unmarshal(encoded, &fields) != nil {
		fields["result"] = encoded // a list has no fields
	}
	var out strings.Builder
	for name, raw := range fields {
		text := string(raw)
		var s string
		if json.Unmarshal(raw, &s) == nil {
			text = s
		}
		// Unguessable, so that no text can end its own value and begin another.
		end := "end-" + uuid.NewString()
		fmt.Fprintf(&out, "%s<<%s\n%s\n%s\n", name, end, text, end)
	}
	return out.String(), nil
}

func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = f.WriteString(text)
		if e := f.Close(); err == nil {
			err = e
		}
	}
	if err != nil {
		return problem.Wrap(err, problem.Internal, "expected to append to "+path,
			"check GITHUB_OUTPUT and GITHUB_STEP_SUMMARY: they name files that the runner made")
	}
	return nil
}
