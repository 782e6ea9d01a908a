package fleet

import (
	"context"
	"errors"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/fleet/smoke"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// Facts are what is known of a fleet beyond its inventory and its probes. All of
// them are asked for, none is needed: where there is none, nothing is compared.
type Facts struct {
	Tags  map[string]Tagged       // by tag: what the registry has under it
	Hosts map[string]HostFacts    // by instance: what its host says over SSH
	Smoke map[string]smoke.Report // by instance; nil where no smoke test was asked for
}

// Tagged is what a registry has under a tag.
type Tagged struct {
	Digest  string
	Version string // of the image, as its label says
	Trouble string // why the registry did not say
	Hint    string
}

// HostFacts are what a host says of itself over SSH.
type HostFacts struct {
	Running, Pinned string   // digests: of the container, and of .env; empty where not known
	Foreign         []string // programs that update images behind a deploy's back
	Underway        bool     // a deploy that has not ended
	Trouble         string   // why it could not be looked at
}

// atOnce bounds calls to registries and hosts, which are made for many instances.
const atOnce = 8

// ResolveTags asks a registry once for each tag that the instances want. Trouble of
// the registry is part of the answer: without it the wanted digest is not known.
func ResolveTags(ctx context.Context, registry release.Registry, instances []Instance) map[string]Tagged {
	var wanted []string
	for _, in := range instances {
		wanted = append(wanted, in.Wanted())
	}
	slices.Sort(wanted)
	wanted = slices.Compact(wanted)
	var (
		mu    sync.Mutex
		tags  = make(map[string]Tagged, len(wanted))
		group errgroup.Group
	)
	group.SetLimit(atOnce)
	for _, tag := range wanted {
		group.Go(func() error {
			found := resolveTag(ctx, registry, tag)
			mu.Lock()
			defer mu.Unlock()
			tags[tag] = found
			return nil
		})
	}
	_ = group.Wait() // its functions return none
	return tags
}

func resolveTag(ctx context.Context, registry release.Registry, tag string) Tagged {
	trouble := func(err error) Tagged {
		if errors.Is(err, release.ErrNotFound) {
			return Tagged{Trouble: registry.String() + " has no tag " + tag, Hint: "release-bot version list"}
		}
		p := problem.As(err)
		return Tagged{Trouble: p.Message, Hint: p.Hint}
	}
	m, err := registry.Manifest(ctx, tag)
	if err != nil {
		return trouble(err)
	}
	found := Tagged{Digest: m.Digest}
	if parsed := release.ParseTag(tag); parsed.Kind == release.TagVersion || parsed.Kind == release.TagNumber {
		found.Version = parsed.Version.String()
		return found
	}
	labels, err := registry.Labels(ctx, m)
	if err != nil {
		found.Trouble = "what version " + tag + " is was not to be learned: " + problem.As(err).Message
		return found
	}
	found.Version = clip(labels["org.opencontainers.image.version"])
	return found
}

// InspectHosts looks at the hosts that the inventory knows, some at a time, over the
// shells that open makes. It changes nothing there.
func InspectHosts(ctx context.Context, instances []Instance, open func(deploy.Target) (deploy.Shell, error)) map[string]HostFacts {
	var (
		mu    sync.Mutex
		hosts = map[string]HostFacts{}
		group errgroup.Group
	)
	group.SetLimit(atOnce)
	for _, in := range instances {
		if in.Host == "" {
			continue
		}
		group.Go(func() error {
			found := inspectHost(ctx, in, open)
			mu.Lock()
			defer mu.Unlock()
			hosts[in.Name] = found
			return nil
		})
	}
	_ = group.Wait() // its functions return none
	return hosts
}

func inspectHost(ctx context.Context, in Instance, open func(deploy.Target) (deploy.Shell, error)) HostFacts {
	trouble := func(err error) HostFacts {
		p, said := errors.AsType[*problem.Error](err)
		if !said {
			return HostFacts{Trouble: clip(err.Error())}
		}
		return HostFacts{Trouble: clip(p.Message)}
	}
	target, err := deploy.ParseTarget(in.Host)
	if err != nil {
		return trouble(err)
	}
	shell, err := open(target)
	if err != nil {
		return trouble(err)
	}
	defer func() { _ = shell.Close() }()
	s, err := deploy.Inspect(ctx, shell, target.Dir)
	if err != nil {
		return trouble(err)
	}
	found := HostFacts{
		Running: digestOf(s.Running.Digest), Pinned: digestOf(s.Pinned.Digest), Underway: s.Underway != nil, Trouble: clip(s.Trouble),
	}
	for _, program := range s.Foreign {
		found.Foreign = append(found.Foreign, clip(program))
	}
	return found
}
