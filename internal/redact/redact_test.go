package redact_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

func TestSecretIsNeverPrinted(t *testing.T) {
	t.Parallel()
	const value = "hunter2-hunter2"
	type holder struct {
		Token redact.Secret
		List  []redact.Secret
		Map   map[string]redact.Secret
	}
	h := holder{Token: value, List: []redact.Secret{value}, Map: map[string]redact.Secret{"k": value}}

	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		fmt.Fprintf(&out, verb+" "+verb+"\n", h, h.Token)
	}
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "token", h.Token, "holder", h)
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "token", h.Token, "holder", h)
	j, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	y, err := yaml.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(j)
	out.Write(y)

	hex := fmt.Sprintf("%x", value)
	for _, leak := range []string{value, hex, strings.ToUpper(hex)} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("the output holds %q:\n%s", leak, out.String())
		}
	}
	if got := h.Token.Reveal(); got != value {
		t.Errorf("Reveal() = %q, want the value", got)
	}
	if got := redact.Secret("").String(); got != "" {
		t.Errorf("the empty Secret prints as %q, want nothing", got)
	}
}
