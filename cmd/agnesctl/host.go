package main

import (
	"cmp"
	"log/slog"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy/local"
	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy/ssh"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
)

func newHost(env cli.Env) *cobra.Command {
	group := &cobra.Command{
		Use:   "host",
		Short: "Deploy to one host, take it back, and look at it",
		Long: `A host is a machine with Docker and a directory that holds an instance's compose
files. It is this machine, or the one of --host, which is reached over SSH with
its key pinned.`,
	}
	group.AddCommand(newHostDeploy(env), newHostRollback(env), newHostStatus(env), newHostAutoUpdate(env), newHostBundle(env))
	return group
}

// hostFlags say which host is meant, and how it is reached.
type hostFlags struct {
	env                  cli.Env
	host, dir            string
	hostKeys             []string
	knownHosts, identity string
	system               bool
	jump                 string
	verbose              bool
}

func (h *hostFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&h.host, "host", "", "host to reach, ssh://USER@HOST[:PORT][/DIR]; this machine when left out")
	f.StringVar(&h.dir, "dir", "", "directory of the instance on the host (the one of --host, else "+deploy.DefaultDir+")")
	f.BoolVarP(&h.verbose, "verbose", "v", false, "log each step on standard error")
	h.addReach(c)
}

// addReach declares the flags that say how a host is reached, whichever it is.
func (h *hostFlags) addReach(c *cobra.Command) {
	f := c.Flags()
	f.StringArrayVar(&h.hostKeys, "host-key", nil, "public key of the host, such as 'ssh-ed25519 AAAA…' (repeatable)")
	f.StringVar(&h.knownHosts, "known-hosts", "", "known_hosts file with the host's key (~/.ssh/known_hosts)")
	f.StringVar(&h.identity, "identity", "", "file with the private key to sign in with; ssh-agent's keys when left out")
	f.BoolVar(&h.system, "system-ssh", false, "connect by the ssh program and what ~/.ssh/config says")
	f.StringVar(&h.jump, "jump", "", "host to go through, ssh://USER@HOST[:PORT]; implies --system-ssh")
	c.MarkFlagsMutuallyExclusive("host-key", "known-hosts")
}

// open returns the shell of the host and the instance's directory there. Close
// the shell. Over SSH nothing is connected to yet.
func (h *hostFlags) open() (deploy.Shell, string, error) {
	if h.dir != "" && !path.IsAbs(h.dir) && h.host != "" {
		return nil, "", cli.UsageError("--dir is %q; expected an absolute path on the host.", h.dir)
	}
	if h.host == "" {
		for _, set := range []struct{ name, value string }{{"--host-key", strings.Join(h.hostKeys, "")}, {"--known-hosts", h.knownHosts}, {"--identity", h.identity}, {"--jump", h.jump}} {
			if set.value != "" {
				return nil, "", cli.UsageError("%s goes with --host; without it the host is this machine.", set.name)
			}
		}
		dir, err := filepath.Abs(cmp.Or(h.dir, deploy.DefaultDir))
		return local.New(), dir, err
	}
	target, err := deploy.ParseTarget(h.host)
	if err != nil {
		return nil, "", err
	}
	target.Dir = cmp.Or(h.dir, target.Dir)
	if h.system || h.jump != "" {
		o := ssh.System{KnownHosts: h.knownHosts, Identity: h.identity}
		if len(h.hostKeys) > 0 {
			return nil, "", cli.UsageError("--host-key does not go with --system-ssh; expected --known-hosts FILE.")
		}
		if h.jump != "" {
			if o.Jump, err = deploy.ParseTarget(h.jump); err != nil {
				return nil, "", err
			}
		}
		shell, err := ssh.NewSystem(target, o)
		return shell, target.Dir, err
	}
	known := h.knownHosts
	if known == "" && len(h.hostKeys) == 0 {
		known = filepath.Join(h.env.Getenv("HOME"), ".ssh", "known_hosts")
	}
	shell, err := ssh.New(target, ssh.Options{HostKeys: h.hostKeys, KnownHosts: known, Identity: h.identity, Agent: h.env.Getenv("SSH_AUTH_SOCK")})
	return shell, target.Dir, err
}

func (h *hostFlags) log() *slog.Logger {
	level := slog.LevelWarn
	if h.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(cli.SafeWriter(h.env.Stderr), &slog.HandlerOptions{Level: level}))
}
