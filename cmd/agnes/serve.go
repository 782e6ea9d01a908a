package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/agent"
	"github.com/keboola/agnes-the-ai-analyst/agent/server"
	"github.com/keboola/agnes-the-ai-analyst/agent/settings"
	"github.com/keboola/agnes-the-ai-analyst/internal/buildinfo"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func newServe(env cli.Env) *cobra.Command {
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run the instance",
		Long: `serve runs the instance until it is told to stop (SIGINT, SIGTERM): it then
accepts nothing new, lets running requests finish, checkpoints and closes.

On first start it generates its secrets below DATA_DIR/state and prints the
address at which the first admin is created. Every setting can come from the
environment too; agnes config lists them.`,
		Example: `  agnes serve --data-dir ./data
  agnes serve --data-dir ./data --csv-dir ./examples/shop
  DATA_DIR=/data AGNES_ADDR=0.0.0.0:8000 agnes serve --log-format json`,
		Args: cobra.NoArgs,
	}
	flags := configFlags(c, settings.DataDir, settings.Addr, settings.CSVDir, settings.LogLevel, settings.LogFormat)
	c.RunE = func(c *cobra.Command, _ []string) error {
		return serve(c.Context(), env, settings.Inputs{Flags: flags(), Getenv: env.Getenv})
	}
	return c
}

func serve(ctx context.Context, env cli.Env, in settings.Inputs) (err error) {
	config, _, err := agent.LoadConfig(in)
	if err != nil {
		return err
	}
	log := newLogger(env, config)
	// Listening comes first: a port that is taken is found before the data
	// directory is touched, and a client that comes early waits instead of
	// being refused; see server.Serve.
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", config.Get(settings.Addr))
	if err != nil {
		return problem.Wrap(err, problem.Refused, fmt.Sprintf("The address %s cannot be listened on", config.Get(settings.Addr)),
			"Stop what uses it, or choose another address with --addr or AGNES_ADDR.")
	}
	defer func() { _ = ln.Close() }()
	build := buildinfo.Get(env.Getenv)
	var instance *agent.Instance
	defer func() {
		if instance != nil {
			closeInto(&err, instance)
		}
	}()
	return server.Serve(ctx, ln, log, func(ctx context.Context) (*server.Server, error) {
		if instance, err = agent.Open(ctx, agent.Options{Inputs: in, Sources: sources(log), Targets: targets(), Build: build, Log: log}); err != nil {
			return nil, err
		}
		if err := instance.WatchUpdates(); err != nil {
			return nil, err
		}
		instance.Warm()
		srv := server.New(server.Options{
			Instance:  instance,
			Log:       log,
			Domain:    config.Get(settings.Domain),
			LocalOnly: config.Get(settings.Bootstrap) == "open" && localOnly(config.Get(settings.Bind)),
		})
		log.Info("Agnes serves.", "address", ln.Addr().String(), "version", build.Version, "data_dir", instance.Layout().Root)
		greet(env, instance, baseURL(config, ln))
		if err := instance.SyncOnStart(ctx); err != nil {
			log.Warn("The first sync could not start.", "error", err, "hint", problem.As(err).Hint)
		}
		return srv, nil
	})
}

// localOnly reports whether docker compose publishes the port on this machine
// alone.
func localOnly(bind string) bool {
	if bind == "" {
		return true
	}
	addr, err := netip.ParseAddr(bind)
	return err == nil && addr.IsLoopback()
}

func baseURL(config *settings.Resolved, ln net.Listener) string {
	if domain := config.Get(settings.Domain); domain != "" {
		return "https://" + domain
	}
	host, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		return "http://" + ln.Addr().String()
	}
	if addr, err := netip.ParseAddr(host); err == nil && addr.IsUnspecified() {
		host = "localhost"
	}
	return "http://" + net.JoinHostPort(host, port)
}

// greet tells the person who started the instance where it is and what comes
// next. The setup token is shown here and in its 0600 file, nowhere else.
func greet(env cli.Env, in *agent.Instance, url string) {
	var b strings.Builder
	fmt.Fprintf(&b, "\nAgnes is running at %s\n", url)
	if !in.SetupRequired() {
		fmt.Fprintf(&b, "  API description: %s/docs/\n\n", url)
		_, _ = io.WriteString(env.Stdout, b.String())
		return
	}
	token, err := os.ReadFile(in.Layout().SetupToken())
	if err == nil {
		fmt.Fprintf(&b, "  Set it up:       %s/setup?token=%s\n", url, strings.TrimSpace(string(token)))
	}
	source := " --source csv --csv-dir /path/to/files"
	if v := in.Settings().Value(settings.CSVDir); v.Text != "" {
		source = " --source csv --csv-dir " + shellWord(v.Text)
	}
	agnesctl := besideAgnes("agnesctl")
	fmt.Fprintf(&b, "\nNext, in another terminal:\n")
	fmt.Fprintf(&b, "  %s instance setup --url %s --email you@company.com%s\n", agnesctl, url, source)
	fmt.Fprintf(&b, "  %s instance tables\n", agnesctl)
	fmt.Fprintf(&b, "  %s instance query 'SHOW TABLES'\n\n", agnesctl)
	_, _ = io.WriteString(env.Stdout, b.String())
}

// shellWord quotes text for a shell where it needs that.
func shellWord(text string) string {
	plain := func(r rune) bool {
		return unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("/._-+,:@%=", r)
	}
	if text != "" && !strings.ContainsFunc(text, func(r rune) bool { return !plain(r) }) {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// besideAgnes returns how to call another program of ours from the current
// directory: by the path beside this one, where it was built together with it.
func besideAgnes(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	path := filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(path); err != nil {
		return name
	}
	if onPath, err := exec.LookPath(name); err == nil && onPath == path {
		return name
	}
	if dir, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(dir, path); err == nil && !strings.HasPrefix(rel, "..") {
			return rel
		}
	}
	return path
}

func newHealthcheck(env cli.Env) *cobra.Command {
	c := &cobra.Command{
		Use:   "healthcheck",
		Short: "Ask the running instance whether it is ready",
		Long: `healthcheck asks the instance on AGNES_ADDR for /readyz. It ends with exit
code 0 where the instance is ready, 3 where it says that it is not, and 1 where
it does not answer. It suits a container's HEALTHCHECK.`,
		Example: `  agnes healthcheck
  agnes healthcheck --addr 127.0.0.1:8000`,
		Args: cobra.NoArgs,
	}
	timeout := c.Flags().Duration("timeout", 5*time.Second, "how long to wait for the answer")
	flags := configFlags(c, settings.Addr)
	c.RunE = func(c *cobra.Command, _ []string) error {
		config, err := settings.Resolve(settings.Inputs{Flags: flags(), Getenv: env.Getenv})
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(c.Context(), *timeout)
		defer cancel()
		return healthcheck(ctx, env, config.Get(settings.Addr))
	}
	return c
}

// localURL is where the instance that listens on addr is reached from its own
// machine.
func localURL(addr string) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", problem.Wrap(err, problem.Usage, fmt.Sprintf("The address %q cannot be read", addr), "Give it as HOST:PORT.")
	}
	if ip, err := netip.ParseAddr(host); host == "" || (err == nil && ip.IsUnspecified()) {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port), nil
}

func healthcheck(ctx context.Context, env cli.Env, addr string) error {
	base, err := localURL(addr)
	if err != nil {
		return err
	}
	url := base + "/readyz"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return problem.Wrap(err, problem.Unavailable, "The instance does not answer at "+url, "Look at its log: docker compose logs app")
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return problem.New(problem.Found, fmt.Sprintf("The instance at %s is not ready (%s).", url, resp.Status),
			fmt.Sprintf("Ask why: curl %s/api/health", base))
	}
	_, err = fmt.Fprintln(env.Stdout, "ready")
	return err
}
