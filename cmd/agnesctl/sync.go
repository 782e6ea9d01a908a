package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/internal/cli"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func (a *app) syncCommand() *cobra.Command {
	var (
		source, follow string
		wait, dryMode  bool
		timeout        time.Duration
		format         cli.Format
	)
	c := &cobra.Command{
		Use:   "sync [TABLE]...",
		Short: "Bring tables up to date with their source",
		Long: `Bring tables up to date with their source and wait for the end; without names,
all tables. A failed job exits with 1, a job that runs already with 4. Ctrl-C and
--timeout end the waiting; the job itself goes on.`,
		Example: `  agnesctl instance sync
  agnesctl instance sync orders customers --timeout 10m
  agnesctl instance sync --follow 0198c5ab -o json`,
		ValidArgsFunction: a.completeTables,
		RunE: a.does(func(c *cobra.Command, tables []string) error {
			if follow != "" && (len(tables) > 0 || source != "" || dryMode || !wait) {
				return cli.UsageError("--follow waits for a job that exists; it takes no tables, --source, --dry-run or --wait=false.")
			}
			client, err := a.client()
			if err != nil {
				return err
			}
			req := api.SyncRequest{Tables: tables, Source: source}
			if dryMode {
				return a.printPlan(format, client.URL(), plannedCall{Method: "POST", Path: "/api/sync/trigger", Body: req})
			}
			id := follow
			if id == "" {
				started, err := a.trigger(c.Context(), client, req)
				if err != nil {
					return err
				}
				if !wait {
					return cli.Print(a.env.Stdout, format, started, func(g *cli.Grid) {
						g.Line("Started job %s for %s.", started.JobID, plural(len(started.Tables), "table"))
						g.Line("Next: %s", a.command("sync --follow %s", started.JobID))
					})
				}
				id = started.JobID
			}
			job, err := a.await(c.Context(), client, id, timeout)
			if err != nil {
				return err
			}
			err = cli.Print(a.env.Stdout, format, job, func(g *cli.Grid) { jobGrid(g, job) })
			return firstOf(err, jobError(job))
		}),
	}
	f := c.Flags()
	f.StringVar(&source, "source", "", "only tables of this source")
	f.StringVar(&follow, "follow", "", "wait for this job instead of starting one")
	f.BoolVar(&wait, "wait", true, "wait for the end")
	f.DurationVar(&timeout, "timeout", 0, "longest time to wait, such as 10m; 0 is no limit")
	f.BoolVar(&dryMode, "dry-run", false, "print the call that would be made")
	cli.OutputFlag(c, &format)
	return c
}

// trigger starts a sync. When one runs, the error names it.
func (a *app) trigger(ctx context.Context, client *api.Client, req api.SyncRequest) (*api.SyncTriggered, error) {
	started, err := client.TriggerSync(ctx, req)
	if e, ok := errors.AsType[*problem.Error](err); ok && e.Kind == problem.Conflict {
		named := *e
		if job := running(ctx, client); job != nil {
			named.Hint = a.command("sync --follow %s", shellQuote(job.ID))
		}
		return nil, &named
	}
	return started, err
}

// running returns the job that runs, or nil.
func running(ctx context.Context, client *api.Client) *api.Job {
	status, err := client.SyncStatus(ctx)
	if err != nil {
		return nil
	}
	return status.Running
}

// await follows a job to its end, with a bar on a terminal and a line for each
// finished table elsewhere.
func (a *app) await(ctx context.Context, client *api.Client, id string, timeout time.Duration) (*api.Job, error) {
	waitCtx, cancel := ctx, context.CancelFunc(func() {})
	if timeout > 0 {
		waitCtx, cancel = context.WithTimeout(ctx, timeout)
	}
	defer cancel()

	bar := cli.NewProgress(a.env, "sync")
	defer bar.Close()
	finished := map[string]bool{}
	job, err := client.FollowJob(waitCtx, id, func(j api.Job) {
		done := 0
		for _, t := range j.Tables {
			if t.Status == api.JobQueued || t.Status == api.JobRunning {
				continue
			}
			done++
			if !finished[t.ID] && !bar.Drawn() {
				a.note("%s", tableLine(t))
			}
			finished[t.ID] = true
		}
		bar.Set(j.Progress, fmt.Sprintf("sync %d of %s", done, plural(len(j.Tables), "table")))
	})
	next := a.command("sync --follow %s", shellQuote(id))
	switch {
	case err == nil:
		return job, nil
	case ctx.Err() != nil:
		return nil, problem.Wrap(ctx.Err(), problem.Unavailable, fmt.Sprintf("Stopped waiting; job %s goes on at the instance.", id), next)
	case waitCtx.Err() != nil:
		return nil, problem.New(problem.Timeout, fmt.Sprintf("Job %s was not done after %s; it goes on at the instance.", id, timeout), next)
	}
	return nil, err
}

func tableLine(t api.JobTable) string {
	if t.Error != "" {
		return fmt.Sprintf("%s: %s: %s", t.ID, t.Status, t.Error)
	}
	if t.Status != api.JobSucceeded {
		return t.ID + ": " + t.Status
	}
	return fmt.Sprintf("%s: %s, %s", t.ID, t.Status, plural(int(t.Rows), "row"))
}

func jobGrid(g *cli.Grid, job *api.Job) {
	g.Row("TABLE", "SOURCE", "STATUS", "ROWS", "ERROR", "NEXT")
	for _, t := range job.Tables {
		g.Row(t.ID, t.Source, t.Status, t.Rows, t.Error, t.Hint)
	}
	for _, w := range job.Warnings {
		g.Line("Warning: %s", w)
	}
	took := ""
	if job.StartedAt != nil && job.EndedAt != nil {
		took = " in " + job.EndedAt.Sub(*job.StartedAt).Round(time.Millisecond).String()
	}
	g.Line("Job %s %s%s.", job.ID, job.Status, took)
}

// jobError is nil for a job that succeeded; otherwise it says what failed.
func jobError(job *api.Job) error {
	if job.Status == api.JobSucceeded {
		return nil
	}
	message, hint := job.Error, job.Hint
	if message == "" {
		message = fmt.Sprintf("The sync ended as %s.", job.Status)
	}
	var more []string
	for _, s := range job.Sources {
		if s.Error != "" && s.Error != message {
			more = append(more, s.Name+": "+s.Error)
		}
		if hint == "" {
			hint = s.Hint
		}
	}
	const few = 5
	if len(more) > few {
		more = append(more[:few], fmt.Sprintf("and %d more", len(more)-few))
	}
	return problem.New(problem.Unprocessable, strings.Join(append([]string{message}, more...), "\n"), hint).WithCode("sync_failed")
}
