package smoke

import (
	"encoding/json"
	"net/url"
	"regexp"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

const (
	maxRecorded = 2 << 10  // bytes of an answer in the report
	maxMasked   = 64 << 10 // bytes of an answer that are searched for secrets
)

// named finds secrets that this run does not know, by their names: a token in an
// answer that broke off is in none of its values.
var named = regexp.MustCompile(`(?i)("[a-z_]*(?:token|password|secret)"\s*:\s*")(?:[^"\\]|\\.)*`)

// mask takes secrets out of a text, in each of the forms that they take on the
// wire.
func (c *caller) mask(text string) string {
	for _, s := range c.secrets {
		if len(s) < 4 {
			continue // it would be found in ordinary words
		}
		quoted, _ := json.Marshal(s.Reveal()) // a string always marshals
		for _, form := range []string{s.Reveal(), strings.Trim(string(quoted), `"`), url.QueryEscape(s.Reveal())} {
			text = strings.ReplaceAll(text, form, redact.Placeholder)
		}
	}
	return named.ReplaceAllString(text, "${1}"+redact.Placeholder)
}

// beginning returns as much of a body as the report holds. It is masked before
// it is cut, or half of a secret could stay.
func (c *caller) beginning(body []byte) string {
	text := c.mask(strings.ToValidUTF8(string(body[:min(len(body), maxMasked)]), "\uFFFD"))
	if len(text) > maxRecorded {
		text = strings.ToValidUTF8(text[:maxRecorded], "") + "…"
	}
	return text
}
