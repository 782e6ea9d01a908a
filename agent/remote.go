package agent

import (
	"fmt"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/agent/analytics"
	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/agent/query"
	"github.com/keboola/agnes-the-ai-analyst/agent/settings"
	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// remote is the database that a source's remote tables stay in.
type remote struct {
	source string
	attach *connectors.RemoteAttach // nil: the source declares several, and nothing says which serves a table
}

func remoteOf(t analytics.TableInfo) remote { return remote{t.Source, t.Remote} }

// key identifies a remote within a generation.
func (r remote) key() string {
	if r.attach == nil {
		return r.source + "."
	}
	return r.source + "." + r.attach.Alias
}

// attachment resolves what attaching r needs, and says what of it is missing.
// It connects to nothing.
func (i *Instance) attachment(r remote) (*query.Attachment, error) {
	refuse := func(code, message, hint string) (*query.Attachment, error) {
		return nil, problem.New(problem.Unprocessable, message, hint).WithCode(code)
	}
	if r.attach == nil {
		return refuse("remote_ambiguous", fmt.Sprintf("The source %s declares several databases in _remote_attach; expected one, since _meta does not say which holds a table.", r.source),
			"Make each database a source of its own: one folder below extracts/, with one row in _remote_attach.")
	}
	a, config := *r.attach, i.Settings()
	policy := config.RemotePolicy()
	if connectors.ValidName(a.Extension) != nil || !slices.ContainsFunc(policy.Extensions, func(e string) bool { return strings.EqualFold(e, a.Extension) }) {
		return refuse("remote_not_allowed", fmt.Sprintf("The extension that the source %s needs is not allowed on this instance; allowed are %s.", r.source, strings.Join(policy.Extensions, ", ")),
			"An admin allows it in AGNES_REMOTE_ATTACH_EXTENSIONS and restarts the instance.")
	}
	at := &query.Attachment{Alias: a.Alias, Extension: a.Extension, URL: a.URL, TokenEnv: a.TokenEnv}
	if a.TokenEnv != "" {
		if !slices.Contains(policy.TokenEnvs, a.TokenEnv) {
			return refuse("remote_not_allowed", fmt.Sprintf("The variable that the source %s names in token_env is not allowed on this instance.", r.source),
				"An admin allows it in AGNES_REMOTE_ATTACH_TOKEN_ENVS and restarts the instance, or names another in token_env.")
		}
		token, err := i.environment(a.TokenEnv)
		if err != nil {
			return nil, err
		}
		if at.Token = token; token == "" {
			return refuse("remote_token_missing", fmt.Sprintf("Missing %s, with which the source %s is read.", a.TokenEnv, r.source),
				fmt.Sprintf("An admin sets %s (or %s_FILE) in the instance's environment and restarts it.", a.TokenEnv, a.TokenEnv))
		}
	}
	dir := config.Get(settings.ExtensionDir)
	if dir == "" {
		dir = filepath.Join(i.opt.Inputs.Getenv("HOME"), ".duckdb", "extensions")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	file, found := query.FindExtension(dir, a.Extension)
	if !found {
		return refuse("remote_extension_missing", fmt.Sprintf("DuckDB's extension %s, through which the source %s is read, is not installed.", a.Extension, r.source),
			fmt.Sprintf("An admin puts it (for DuckDB %s, named as DuckDB names it) into the directory that AGNES_EXTENSION_DIR names, and restarts the instance.", query.Version()))
	}
	at.ExtensionFile = file
	if path, is := query.LocalFile(a.Extension, a.URL); is {
		real, err := i.outside(r.source, path)
		if err != nil {
			return nil, err
		}
		at.URL = real
	}
	return at, nil
}

// environment returns a variable, or what the file holds that NAME_FILE names.
func (i *Instance) environment(name string) (redact.Secret, error) {
	if text := i.opt.Inputs.Getenv(name); text != "" {
		return redact.Secret(text), nil
	}
	file := i.opt.Inputs.Getenv(name + "_FILE")
	if file == "" {
		return "", nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return "", problem.Wrap(err, problem.Unprocessable, fmt.Sprintf("The file that %s_FILE names cannot be read.", name),
			"An admin makes it readable for the instance.").WithCode("remote_token_missing")
	}
	return redact.Secret(strings.TrimRight(string(data), "\r\n")), nil
}

// outside returns the true path of a database file that a source names, and
// refuses what the instance keeps for itself.
func (i *Instance) outside(source, path string) (string, error) {
	refuse := func(message, hint string) (string, error) {
		return "", problem.New(problem.Unprocessable, message, hint).WithCode("remote_not_allowed")
	}
	if !filepath.IsAbs(path) {
		return refuse(fmt.Sprintf("The url of the source %s in _remote_attach is no absolute path of a file.", source),
			"An admin corrects it: UPDATE _remote_attach SET url = '/path/to/file.db'; and syncs.")
	}
	real, err := filepath.EvalSymlinks(path)
	if err == nil {
		var info os.FileInfo
		if info, err = os.Stat(real); err == nil && !info.Mode().IsRegular() {
			err = fmt.Errorf("%s is no file", real)
		}
	}
	if err != nil {
		return "", problem.Wrap(err, problem.Unavailable, fmt.Sprintf("The database file of the source %s cannot be found.", source),
			"An admin puts it back where url in _remote_attach says, or corrects that.").WithCode("remote_unavailable")
	}
	root, err := filepath.EvalSymlinks(i.layout.Root)
	if err != nil {
		return "", err
	}
	inside := func(dir string) bool {
		rel, err := filepath.Rel(dir, real)
		return err == nil && filepath.IsLocal(rel)
	}
	if inside(root) && !inside(filepath.Join(root, "extracts", source)) {
		return refuse(fmt.Sprintf("The url of the source %s names a file that the instance keeps for itself.", source),
			"An admin puts the database elsewhere, outside DATA_DIR or into the source's own folder, and corrects url in _remote_attach.")
	}
	return real, nil
}

// remoteHealth says whether what the published remote tables need is there,
// without connecting to anything and without naming anything.
func (i *Instance) remoteHealth() api.ServiceHealth {
	g, ok := i.analytics.Acquire()
	if !ok {
		return api.ServiceHealth{Status: api.Healthy, Detail: "No table is remote."}
	}
	defer g.Release()
	all, broken := i.examineRemotes(maps.Values(g.Tables))
	if len(broken) > 0 {
		return api.ServiceHealth{
			Status: api.Degraded, Detail: fmt.Sprintf("%d of %d databases with remote tables cannot be used.", len(broken), all),
			Hint: "GET /api/health/details names them with what is missing; all other tables are served.",
		}
	}
	return healthyRemotes(all)
}

func healthyRemotes(all int) api.ServiceHealth {
	if all == 0 {
		return api.ServiceHealth{Status: api.Healthy, Detail: "No table is remote."}
	}
	return api.ServiceHealth{Status: api.Healthy, Detail: fmt.Sprintf("%d databases with remote tables are set up.", all)}
}

// remoteHealthOf is remoteHealth for somebody who may know what is missing for
// the tables that they see.
func (i *Instance) remoteHealthOf(v *visible) api.ServiceHealth {
	all, broken := i.examineRemotes(func(yield func(analytics.TableInfo) bool) {
		for _, t := range v.tables {
			if info, ok := v.published(t.ID); ok && !yield(info) {
				return
			}
		}
	})
	if len(broken) == 0 {
		return healthyRemotes(all)
	}
	var details, hints []string
	for _, err := range broken {
		p := problem.As(err)
		details = append(details, p.Message)
		if !slices.Contains(hints, p.Hint) {
			hints = append(hints, p.Hint)
		}
	}
	return api.ServiceHealth{Status: api.Degraded, Detail: strings.Join(details, " "), Hint: strings.Join(hints, " ")}
}

// examineRemotes counts the databases that remote tables stay in, and returns
// why some of them cannot be used, in the order of their names.
func (i *Instance) examineRemotes(tables iter.Seq[analytics.TableInfo]) (all int, broken []error) {
	remotes := map[string]remote{}
	for t := range tables {
		if t.QueryMode == connectors.Remote {
			r := remoteOf(t)
			remotes[r.key()] = r
		}
	}
	for _, key := range slices.Sorted(maps.Keys(remotes)) {
		if _, err := i.attachment(remotes[key]); err != nil {
			broken = append(broken, err)
		}
	}
	return len(remotes), broken
}
