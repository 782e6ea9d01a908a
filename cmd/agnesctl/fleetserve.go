package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/fleet/dashboard"
	"github.com/keboola/agnes-the-ai-analyst/fleet/monitor"
	"github.com/keboola/agnes-the-ai-analyst/fleet/rollout"
	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// fleetServer is `agnesctl fleet serve`.
type fleetServer struct {
	env   cli.Env
	f     *fleetFlags
	state func() string
	log   *slog.Logger

	addr, publicURL     string
	authFile, header    string
	proxies             []string
	once, closed        bool
	closedSaid, verbose bool
	interval, refresh   time.Duration
	shardText           string
	shard               fleet.Shard
	workers             int

	page   *dashboard.Server
	store  *store.Store
	prober *fleet.Prober
}

func newFleetServe(env cli.Env) *cobra.Command {
	s := &fleetServer{env: env, f: &fleetFlags{env: env}}
	c := &cobra.Command{
		Use:   "serve",
		Short: "Watch a fleet, show it as a web page, and tell people what is wrong",
		Long: `serve asks every instance of the inventory again and again, judges by several
probes, remembers what changed in the folder of --state, and tells the inventory's
channels of incidents. It shows all of it as a web page, and exports it for
Prometheus at /metrics and /sd.

A changed inventory is taken by itself, and on SIGHUP. One with faults is not taken:
the page and the log say what is wrong, and the last good one goes on.

Everybody who reaches the page may read it, so it listens on this machine alone
until there are logins. Where others reach it, by --addr or through a proxy by
--public-url, reading needs a login, too, unless --login-to-read=false. To pause or
abort a rollout always needs a login:
  --auth-file    names and passwords (agnesctl fleet passwd makes the file)
  --auth-once    prints a password that opens one session
  --auth-header  a reverse proxy signs people in and names them in this header;
                 it counts from --trusted-proxy alone
Behind a proxy, attempts at a login are counted by the address that --trusted-proxy
names; without it they are counted together.`,
		Example: `  agnesctl fleet serve -f fleet.yaml
  agnesctl fleet serve --auth-file logins --public-url https://fleet.acme.com --trusted-proxy 127.0.0.1
  agnesctl fleet serve --auth-header X-Forwarded-User --trusted-proxy 127.0.0.1/32
  agnesctl fleet serve --shard 2/5 --state /var/lib/agnes-fleet`,
		Args: cobra.NoArgs,
	}
	s.f.add(c)
	s.state = stateFlag(c, s.f)
	f := c.Flags()
	f.StringVar(&s.addr, "addr", "127.0.0.1:8800", "address of the page")
	f.StringVar(&s.publicURL, "public-url", "", "address by which people reach the page, such as https://fleet.acme.com; messages link to it")
	f.StringVar(&s.authFile, "auth-file", "", "file of logins, NAME:BCRYPT, as agnesctl fleet passwd and htpasswd -B write it")
	f.BoolVar(&s.once, "auth-once", false, "print a password that opens one session")
	f.StringVar(&s.header, "auth-header", "", "header in which a reverse proxy names the user that it has signed in, such as X-Forwarded-User")
	f.StringSliceVar(&s.proxies, "trusted-proxy", nil, "addresses of the reverse proxy, such as 10.0.0.0/8: its X-Forwarded-For and -Proto count, and --auth-header")
	f.BoolVar(&s.closed, "login-to-read", false, "reading needs a login, too (default: yes where --addr or --public-url is not of this machine alone)")
	f.DurationVar(&s.interval, "interval", 0, "time between two probes of every instance, in place of the inventory's")
	f.DurationVar(&s.refresh, "refresh", time.Minute, "how often an inventory of --git or --at is read again")
	f.StringVar(&s.shardText, "shard", "", "watch a part of the fleet alone, I/N: the rest is other pollers'; each has a --state of its own")
	f.IntVar(&s.workers, "workers", 0, "probes at once (default 256)")
	f.BoolVarP(&s.verbose, "verbose", "v", false, "log more on standard error")
	_ = c.MarkFlagFilename("auth-file")
	c.RunE = func(c *cobra.Command, _ []string) error {
		s.closedSaid = c.Flags().Changed("login-to-read")
		return s.run(c.Context())
	}
	return c
}

// access is who may do what, as the flags say.
func (s *fleetServer) access() (dashboard.Access, error) {
	a := dashboard.Access{File: s.authFile, Header: s.header, Closed: s.closed}
	host, _, err := net.SplitHostPort(s.addr)
	if err != nil {
		return a, cli.UsageError("--addr is %q; expected HOST:PORT, such as 127.0.0.1:8800.", s.addr)
	}
	if s.once {
		a.Once = redact.Secret(rand.Text())
	}
	for _, text := range s.proxies {
		prefix, err := netip.ParsePrefix(text)
		if addr, plain := netip.ParseAddr(text); err != nil && plain == nil {
			prefix, err = addr.Prefix(addr.BitLen())
		}
		if err != nil {
			return a, cli.UsageError("--trusted-proxy is %q; expected an address or a network, such as 10.0.0.0/8.", text)
		}
		a.Trusted = append(a.Trusted, prefix)
	}
	public := "localhost"
	if s.publicURL != "" {
		u, err := url.Parse(s.publicURL)
		if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || strings.Trim(u.Path, "/") != "" {
			return a, cli.UsageError("--public-url is %q; expected https://HOST without a path.", s.publicURL)
		}
		a.Hosts, a.Secure = []string{u.Hostname()}, u.Scheme == "https"
		public = u.Hostname()
	}
	if !onlyHere(host) && !a.Orders() {
		return a, problem.New(problem.Refused, fmt.Sprintf("Expected logins for a page that other machines reach (--addr %s), found none.", s.addr),
			"Make one: agnesctl fleet passwd NAME --auth-file logins; then add --auth-file logins. Or stay on 127.0.0.1, and look through SSH: ssh -L 8800:127.0.0.1:8800 THIS-MACHINE")
	}
	if !s.closedSaid {
		a.Closed = !onlyHere(host) || !onlyHere(public)
	}
	return a, nil
}

// onlyHere reports whether a name is of this machine and no other one reaches it.
func onlyHere(host string) bool { return host == "localhost" || net.ParseIP(host).IsLoopback() }

func (s *fleetServer) run(ctx context.Context) error {
	level := slog.LevelInfo
	if s.verbose {
		level = slog.LevelDebug
	}
	s.log = slog.New(slog.NewTextHandler(cli.SafeWriter(s.env.Stderr), &slog.HandlerOptions{Level: level}))
	var err error
	if s.shard, err = fleet.ParseShard(s.shardText); err != nil {
		return err
	}
	if s.interval != 0 && s.interval < time.Second || s.refresh < time.Second {
		return cli.UsageError("Expected --interval and --refresh of a second or more.")
	}
	access, err := s.access()
	if err == nil {
		err = access.Check()
	}
	if err != nil {
		return err
	}
	inventory, err := s.load(ctx)
	if err != nil {
		return err
	}
	if s.store, err = store.Open(ctx, s.state()); err != nil {
		return err
	}
	defer func() { _ = s.store.Close() }()
	fleet.RaiseFileLimit(1 << 16)
	s.prober = fleet.NewProber(fleet.ProbeOptions{Concurrency: s.workers, Proxy: http.ProxyFromEnvironment})
	defer s.prober.Close()
	if s.page, err = dashboard.New(dashboard.Options{Store: s.store, Access: access, Log: s.log}); err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.addr)
	if err != nil {
		return problem.Wrap(err, problem.Unavailable, "Expected to listen on "+s.addr+".", "Name another address: --addr 127.0.0.1:0 takes a free port.")
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	web := &http.Server{
		Handler: s.page, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- web.Serve(listener) }()
	fmt.Fprintf(s.env.Stdout, "The fleet's page: http://%s/\n", listener.Addr())
	if access.Once != "" {
		fmt.Fprintf(s.env.Stdout, "Its password, for one session of %s: %s\n", dashboard.Operator, access.Once.Reveal())
	}
	watched := s.watch(ctx, inventory, served)
	end() // ends the streams of open pages
	polite, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if web.Shutdown(polite) != nil {
		_ = web.Close() // of those that did not end in time
	}
	return watched
}

// load reads the inventory with what the flags change of it.
func (s *fleetServer) load(ctx context.Context) (*fleet.Inventory, error) {
	inventory, chosen, err := s.f.load(ctx)
	if err != nil {
		return nil, err
	}
	inventory.Instances = s.shard.Of(chosen)
	if s.interval != 0 {
		for i := range inventory.Instances {
			one := &inventory.Instances[i]
			one.Interval, one.Timeout = s.interval, min(one.Timeout, s.interval)
		}
	}
	return inventory, nil
}

// beginAgain is the pause before a monitor that could not begin is tried again.
const beginAgain = 5 * time.Second

// watch runs one monitor after the other, each with the inventory of its time. Once
// one has watched, a store in trouble does not end that.
func (s *fleetServer) watch(ctx context.Context, inventory *fleet.Inventory, served <-chan error) error {
	fresh := make(chan *fleet.Inventory)
	go s.lookForChanges(ctx, inventory, fresh)
	for first := true; ; first = false {
		m, err := s.monitor(inventory)
		if err != nil {
			return err
		}
		era, end := context.WithCancel(ctx)
		ended := make(chan error, 1)
		shown := make(chan struct{})
		go func() { ended <- m.Run(era) }()
		go func() {
			s.page.Follow(era, dashboard.Inventory{Name: s.name(), Instances: inventory.Instances, Loaded: time.Now()}, m)
			close(shown)
		}()
		stop := func() error {
			end()
			<-shown
			return <-ended
		}
		select {
		case inventory = <-fresh:
			if err := stop(); err != nil {
				s.log.Error("the watch has not ended well; the next one goes on", "error", err)
			}
			s.log.Info("the inventory has changed", "instances", len(inventory.Instances))
		case err := <-ended: // it could not begin
			end()
			<-shown
			if first || err == nil {
				return err
			}
			s.log.Error("the watch cannot begin; it is tried again", "error", err, "hint", problem.As(err).Hint)
			select {
			case <-time.After(beginAgain):
			case <-ctx.Done():
				return nil
			}
		case err := <-served:
			return errors.Join(err, stop())
		case <-ctx.Done():
			return stop()
		}
	}
}

// name is what people call the inventory. The page shows it, so a token in the
// address of its repository is left out.
func (s *fleetServer) name() string {
	name := s.f.file
	if s.f.git != "" {
		repository := s.f.git
		if u, err := url.Parse(repository); err == nil {
			u.User = nil
			repository = u.String()
		}
		name = repository + " " + name
	}
	if s.shard.Count > 1 {
		name += " (shard " + s.shard.String() + ")"
	}
	return name
}

func (s *fleetServer) monitor(inventory *fleet.Inventory) (*monitor.Monitor, error) {
	return monitor.New(monitor.Options{
		Inventory: inventory, Store: s.store, Prober: s.prober, Workers: s.workers, Log: s.log,
		Channels: fleetChannels(inventory),
		Silenced: (&rolling{store: s.store, log: s.log}).silenced,
		Link: func(name string) string {
			if s.publicURL == "" {
				return ""
			}
			return strings.TrimSuffix(s.publicURL, "/") + "/i/" + url.PathEscape(name)
		},
	})
}

// How often an inventory is looked at.
const (
	lookAtFiles = 2 * time.Second
	readAgain   = 10 * time.Second // one with faults: a file that it names may be there by then
)

// lookForChanges hands on each inventory that is another one than before.
func (s *fleetServer) lookForChanges(ctx context.Context, inventory *fleet.Inventory, fresh chan<- *fleet.Inventory) {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	look := time.NewTicker(lookAtFiles)
	defer look.Stop()
	// A stamp is older than what was read. Files that were not known before it are
	// looked at once more, since they may have changed meanwhile.
	stamp, tried, broken := "", time.Now(), false
	remote := s.f.git != "" || s.f.at != ""
	said := ""
	for {
		asked := false
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			asked = true
		case <-look.C:
		}
		now, is := time.Now(), stampOf(inventory.Files)
		due := is != stamp || broken && now.Sub(tried) >= readAgain
		if remote {
			due = now.Sub(tried) >= s.refresh
		}
		if !due && !asked {
			continue
		}
		maybe := remote || stamp == ""
		stamp, tried = is, now
		next, err := s.load(ctx)
		if ctx.Err() != nil {
			return
		}
		s.page.Report(err)
		if broken = err != nil; broken {
			if text := err.Error(); text != said {
				said = text
				s.log.Error("the changed inventory is not taken; the last good one goes on", "error", err)
			}
			continue
		}
		said = ""
		if maybe && !asked && fmt.Sprintf("%+v", *next) == fmt.Sprintf("%+v", *inventory) {
			continue
		}
		if !slices.Equal(next.Files, inventory.Files) {
			stamp = ""
		}
		inventory = next
		select {
		case fresh <- inventory:
		case <-ctx.Done():
			return
		}
	}
}

// stampOf changes when one of the files does.
func stampOf(files []string) string {
	var b strings.Builder
	for _, name := range files {
		info, err := os.Stat(name)
		if err != nil {
			fmt.Fprintf(&b, "%s gone\n", name)
			continue
		}
		fmt.Fprintf(&b, "%s %d %d\n", name, info.Size(), info.ModTime().UnixNano())
	}
	return b.String()
}

// rolling knows which instances a rollout is at work on: that such a one is down for
// a moment is no news.
type rolling struct {
	store *store.Store
	log   *slog.Logger

	mu     sync.Mutex
	looked time.Time
	names  map[string]string // with the reason
}

// lookAtRollouts is how old the answer of silenced may be.
const lookAtRollouts = 5 * time.Second

func (r *rolling) silenced(name string, at time.Time) (string, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if at.Sub(r.looked).Abs() >= lookAtRollouts {
		r.looked = at
		if err := r.look(); err != nil {
			r.log.Error("the rollouts cannot be read", "error", err)
		}
	}
	reason, is := r.names[name]
	return reason, is
}

func (r *rolling) look() error {
	ctx, cancel := context.WithTimeout(context.Background(), lookAtRollouts)
	defer cancel()
	records, err := r.store.Rollouts(ctx, 5)
	if err != nil {
		return err
	}
	r.names = map[string]string{}
	for _, record := range records {
		if rollout.State(record.State).Resting() {
			continue
		}
		one, err := rollout.Decode(record)
		if err != nil {
			return err
		}
		for _, wave := range one.Waves {
			for _, m := range wave.Members {
				if m.State == rollout.Taking || m.State == rollout.TakingBack {
					r.names[m.Name] = fmt.Sprintf("The rollout %s takes it to %s.", one.ID, m.To)
				}
			}
		}
	}
	return nil
}
