package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/agent/settings"
	"github.com/keboola/agnes-the-ai-analyst/agent/state"
	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Config returns every setting with its source; secrets are redacted.
func (i *Instance) Config(context.Context, Caller) (api.Config, error) {
	return ShowConfig(i.Settings()), nil
}

// ShowConfig is a configuration as people may see it.
func ShowConfig(r *settings.Resolved) api.Config {
	out := api.Config{Settings: []api.Setting{}}
	for _, v := range r.Values() {
		out.Settings = append(out.Settings, api.Setting{Key: v.Key, Value: v.Shown(), Source: v.Source})
	}
	return out
}

// Configure chooses a data source and changes settings. The source is proved
// before anything is stored; a value that the environment fixes to something
// else is a problem.Conflict that names the variable. Configuring what is
// configured already changes nothing.
func (i *Instance) Configure(ctx context.Context, caller Caller, req api.ConfigureRequest) (api.ConfigureResponse, error) {
	if err := i.supported(req); err != nil {
		return api.ConfigureResponse{}, err
	}
	changes := map[string]string{settings.DataSource: req.DataSource}
	for key, value := range map[string]*string{
		settings.CSVDir: req.CSVDir, settings.CSVOnBadRow: req.CSVOnBadRow,
		settings.InstanceName: req.InstanceName, settings.AllowedDomain: req.AllowedDomain,
	} {
		if value != nil {
			changes[key] = *value
		}
	}

	i.configure.Lock()
	defer i.configure.Unlock()
	current := i.Settings()
	in := i.opt.Inputs
	var err error
	if in.Stored, err = settings.Load(i.layout.Config()); err != nil {
		return api.ConfigureResponse{}, err
	}
	in.Stored = maps.Clone(in.Stored)
	for _, key := range slices.Sorted(maps.Keys(changes)) {
		v := current.Value(key)
		if by, fixed := v.Fixed(); fixed {
			if !sameValue(key, v.Text, changes[key]) {
				return api.ConfigureResponse{}, problem.New(problem.Conflict,
					fmt.Sprintf("%s is fixed to %q by %s.", key, v.Shown(), by),
					fmt.Sprintf("Change or unset %s and restart the instance, or leave %s out.", v.Env, key)).WithCode("fixed_by_environment")
			}
			continue
		}
		in.Stored[key] = changes[key]
	}
	next, err := settings.Resolve(in)
	if err != nil {
		return api.ConfigureResponse{}, problem.Wrap(err, problem.Unprocessable, problem.As(err).Message, problem.As(err).Hint)
	}
	source, err := i.openSource(next)
	if err != nil {
		return api.ConfigureResponse{}, err
	}
	if err := source.Check(ctx); err != nil {
		return api.ConfigureResponse{}, err
	}
	if next.Hash() != current.Hash() {
		data, err := settings.Encode(in.Stored)
		if err != nil {
			return api.ConfigureResponse{}, err
		}
		if err := i.drain.do(func() error {
			if err := state.WriteFileAtomic(i.layout.Config(), data, 0o600); err != nil {
				return notStored(i.layout.Config(), err)
			}
			i.config.Store(next)
			return nil
		}); err != nil {
			return api.ConfigureResponse{}, err
		}
		i.audit(ctx, state.AuditEntry{
			Actor: caller.Email, ActorID: caller.UserID, Remote: caller.Remote, Action: "instance.configure", Target: req.DataSource,
			Detail: map[string]any{"keys": slices.Sorted(maps.Keys(changes))},
		})
	}
	return api.ConfigureResponse{Status: "configured", DataSource: req.DataSource, Connection: "local"}, nil
}

func notStored(path string, err error) error {
	dir := filepath.Dir(path)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return problem.Wrap(err, problem.NoSpace, fmt.Sprintf("The disk that holds %s is full; the configuration was not stored.", dir),
			fmt.Sprintf("Free space there (`df -h %s` shows how much is left), then try again.", dir))
	}
	return problem.Wrap(err, problem.Unavailable, fmt.Sprintf("The configuration could not be stored in %s.", path),
		fmt.Sprintf("Give the instance's user write access (`ls -ld %s` shows who has it), then try again.", dir))
}

// sameValue compares two values of a setting; directories may be spelled
// differently.
func sameValue(key, a, b string) bool {
	if key != settings.CSVDir || a == b {
		return a == b
	}
	absA, errA := filepath.Abs(a)
	absB, errB := filepath.Abs(b)
	return errA == nil && errB == nil && absA == absB
}

// supported refuses what belongs to a connector that this build does not have,
// so that nobody believes a credential to be stored that is not.
func (i *Instance) supported(req api.ConfigureRequest) error {
	given := map[string]bool{
		"keboola":  req.KeboolaToken != nil || req.KeboolaURL != nil,
		"bigquery": req.BigQueryProject != nil || req.BigQueryLocation != nil,
		"jira":     req.JiraDomain != nil || req.JiraEmail != nil || req.JiraAPIToken != nil || req.JiraWebhookSecret != nil,
	}
	given[req.DataSource] = true
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if _, ok := i.opt.Sources[name]; given[name] && !ok {
			return problem.New(problem.Unprocessable,
				fmt.Sprintf("The data source %q comes with connector %s, which this version does not have.", name, name),
				"Available here: "+strings.Join(slices.Sorted(maps.Keys(i.opt.Sources)), ", ")+". GET /api/version says which version runs.").
				WithCode("connector_not_available")
		}
	}
	return nil
}

// openSource makes the configured source, or says how to configure one.
func (i *Instance) openSource(config *settings.Resolved) (connectors.Source, error) {
	name := config.Get(settings.DataSource)
	if name == "" {
		return nil, problem.New(problem.Unprocessable, "No data source is configured.",
			`Configure one: POST /api/admin/configure {"data_source":"csv","csv_dir":"/path/to/files"}`).WithCode("no_data_source")
	}
	open, ok := i.opt.Sources[name]
	if !ok {
		return nil, i.supported(api.ConfigureRequest{DataSource: name})
	}
	if dir := config.Get(settings.CSVDir); name == "csv" && dir != "" {
		if err := i.outsideData(dir); err != nil {
			return nil, err
		}
	}
	return open(config)
}

// outsideData keeps the instance's own files from being read as a source.
func (i *Instance) outsideData(dir string) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		abs = real
	}
	root := i.layout.Root
	if real, err := filepath.EvalSymlinks(root); err == nil {
		root = real
	}
	if within(abs, root) || within(root, abs) {
		return problem.New(problem.Unprocessable,
			fmt.Sprintf("csv_dir is %s, which overlaps the instance's own data directory %s.", dir, i.layout.Root),
			"Put the files in a directory of their own and pass that one as csv_dir.").WithCode("csv_dir_overlaps")
	}
	return nil
}

func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator))
}
