// Command fleetsim runs a simulated fleet. Fleet commands are tried out and
// measured against it, without any real instance:
//
//	go run ./e2e/fleetsim -n 1000 -mix hole=0.01,expired=0.01 -dir /tmp/fleet
//	agnesctl fleet status -f /tmp/fleet/fleet.yaml
//
// It prints one line of JSON when it is ready, with the address of the API that
// changes instances while they run (package sim describes it), and ends on an
// interrupt or when its standard input, given -stdin, is closed.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/e2e/fleetsim/sim"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	f := flag.NewFlagSet("fleetsim", flag.ContinueOnError)
	f.SetOutput(stderr)
	var (
		n       = f.Int("n", 1000, "number of instances")
		seed    = f.Uint64("seed", 1, "of the mix: the same seed gives the same fleet")
		mix     = f.String("mix", "", "shares of faults, such as hole=0.01,expired=0.01")
		port    = f.Int("port", 0, "port of the instances; 0 for a free one")
		control = f.String("control", "127.0.0.1:0", "address of the API that changes instances")
		dir     = f.String("dir", "", "folder that ca.pem and fleet.yaml are written into")
		tied    = f.Bool("stdin", false, "end when standard input is closed")
	)
	if f.Parse(args) != nil {
		return 2
	}
	if err := serve(ctx, *n, *seed, *mix, *port, *control, *dir, *tied, stdin, stdout); err != nil {
		fmt.Fprintln(stderr, "fleetsim:", err)
		return 1
	}
	return 0
}

func serve(ctx context.Context, n int, seed uint64, mixText string, port int, control, dir string, tied bool, stdin io.Reader, stdout io.Writer) error {
	mix, err := sim.ParseMix(mixText)
	if err != nil {
		return err
	}
	fleet, err := sim.Start(ctx, sim.Options{N: n, Seed: seed, Mix: mix, Port: port})
	if err != nil {
		return err
	}
	defer fleet.Close()
	if err := fleet.Warm(); err != nil {
		return err
	}
	if dir != "" {
		if err := fleet.WriteInventory(dir); err != nil {
			return err
		}
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", control)
	if err != nil {
		return fmt.Errorf("listen for control: %w", err)
	}
	server := &http.Server{Handler: fleet.Control(), ReadHeaderTimeout: time.Minute}
	defer func() { _ = server.Close() }()
	go func() { _ = server.Serve(l) }()
	if err := json.NewEncoder(stdout).Encode(map[string]any{"instances": n, "first": fleet.URL(0), "control": "http://" + l.Addr().String(), "dir": dir}); err != nil {
		return fmt.Errorf("say that it is ready: %w", err)
	}
	ended := make(chan struct{})
	if tied {
		go func() {
			_, _ = io.Copy(io.Discard, stdin)
			close(ended)
		}()
	}
	select {
	case <-ctx.Done():
	case <-ended:
	}
	return nil
}
