package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/webhook"
)

// alertFlags name the webhook of a verb that tells people.
type alertFlags struct{ hook, secretFile string }

func (f *alertFlags) register(c *cobra.Command) {
	c.Flags().StringVar(&f.hook, "webhook-url", "", "`URL` that is told, as Slack expects it (default $RELEASE_BOT_WEBHOOK_URL)")
	c.Flags().StringVar(&f.secretFile, "webhook-secret-file", "", "`FILE` with the secret that signs it (default: $RELEASE_BOT_WEBHOOK_SECRET)")
}

// alerting lets p tell people: by issues of --repo and by the webhook.
func (a *app) alerting(p *release.Publisher, f alertFlags) (err error) {
	if p.Forge, err = a.forgeIfAny(); err != nil {
		return err
	}
	p.Places = a.places()
	p.Notify, err = a.notifier(f.hook, f.secretFile)
	return err
}

// places are the flags that lead another call to the same places.
func (a *app) places() string {
	var flags []string
	for _, f := range [][2]string{{"--repo", a.repo}, {"--git", a.git}, {"--registry", a.registry}} {
		if f[1] != "" && !strings.Contains(f[1], "@") { // nor a password
			flags = append(flags, f[0], f[1])
		}
	}
	return strings.Join(flags, " ")
}

// notifier is the webhook that the flags or the environment name, or nil.
func (a *app) notifier(address, secretFile string) (func(context.Context, release.Notice) error, error) {
	if address == "" {
		address = a.env.Getenv("RELEASE_BOT_WEBHOOK_URL")
	}
	if address == "" {
		return nil, nil //nolint:nilnil // no webhook is a valid choice
	}
	secret := a.env.Getenv("RELEASE_BOT_WEBHOOK_SECRET")
	if secretFile != "" {
		raw, err := os.ReadFile(secretFile)
		if err != nil {
			return nil, problem.Wrap(err, problem.Usage, "expected to read the webhook's secret", "check --webhook-secret-file")
		}
		if secret = strings.TrimSpace(string(raw)); secret == "" {
			return nil, problem.New(problem.Usage, fmt.Sprintf("expected a secret in %s, found an empty file", secretFile), "check --webhook-secret-file")
		}
	}
	h, err := webhook.New(webhook.Options{URL: redact.Secret(address), Secret: redact.Secret(secret)})
	if err != nil {
		return nil, err
	}
	return h.Send, nil
}
