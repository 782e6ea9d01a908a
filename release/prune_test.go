package release_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// ledger is what the tests of single rules know: version 2026.04.N was claimed
// on the Nth of April, 2026.05.N on the Nth of May; odd ones for dev.
func ledger(in *release.PruneInput) {
	for _, month := range []int{4, 5} {
		for n := range int64(18) {
			v := version(2026, month, n+1)
			channel := release.Stable
			if v.N%2 == 1 {
				channel = release.Dev
			}
			in.Claims = append(in.Claims, release.Claim{Version: v, Channel: channel, ClaimedAt: time.Date(2026, time.Month(month), int(v.N), 12, 0, 0, 0, time.UTC)})
		}
	}
	in.Policy.KeepDevLast = 1
}

func deprecate(in *release.PruneInput, v release.Version, days int) {
	in.Deprecations[v] = release.Deprecation{Version: v, At: pruneNow.AddDate(0, 0, -days)}
}

const old = 90 * 24 * time.Hour

// TestEachRule pushes manifests in the order of their names, with the tags of
// theirs, and tells what the plan does with each, by rule.
func TestEachRule(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		build func(w *world, in *release.PruneInput) []string
		want  []string // action and rule of each digest that build returned
	}{
		"floating and foreign tags hold whatever else a digest has": {
			func(w *world, in *release.PruneInput) []string {
				deprecate(in, version(2026, 4, 2), 60)
				deprecate(in, version(2026, 4, 4), 60)
				return []string{w.push(nil, "", old, "stable", "stable-2026.04.2", "2026.04.2"), w.push(nil, "", old, "latest", "stable-2026.04.4")}
			},
			[]string{"keep floating", "keep foreign"},
		},
		"a stable version stays until 30 days after its deprecation, and then goes with every tag": {
			func(w *world, in *release.PruneInput) []string {
				deprecate(in, version(2026, 4, 4), 29)
				deprecate(in, version(2026, 4, 6), 30)
				return []string{
					w.push(nil, "", old, "stable-2026.04.2", "2026.04.2"),
					w.push(nil, "", old, "stable-2026.04.4", "2026.04.4", "deprecated-2026.04.4"),
					w.push(nil, "", old, "stable-2026.04.6", "2026.04.6", "sha-abcdef0", "confirmed-2026.04.6", "deprecated-2026.04.6"),
				}
			},
			[]string{"keep stable", "keep grace", "delete deprecated"},
		},
		"the registry's deprecation tag without the ledger's entry lets nothing go": {
			func(w *world, _ *release.PruneInput) []string {
				return []string{w.push(nil, "", old, "stable-2026.04.2", "deprecated-2026.04.2")}
			},
			[]string{"keep stable"},
		},
		"a version that is not deprecated holds a digest that one shares with it": {
			func(w *world, in *release.PruneInput) []string {
				deprecate(in, version(2026, 4, 2), 60)
				return []string{w.push(nil, "", old, "stable-2026.04.2", "stable-2026.04.4")}
			},
			[]string{"keep stable"},
		},
		"a dev version goes when it is both old and not among the newest": {
			func(w *world, _ *release.PruneInput) []string {
				return []string{
					w.push(nil, "", old, "dev-2026.04.1", "sha-0000001", "dev-sha-0000001"),
					w.push(nil, "", old, "dev-2026.05.1", "sha-0000002"), // 19 days old
					w.push(nil, "", old, "dev-2026.05.3"),                // the newest
				}
			},
			[]string{"delete dev-age", "keep dev-age", "keep dev-last"},
		},
		"an old dev version that is the newest stays": {
			func(w *world, _ *release.PruneInput) []string {
				return []string{w.push(nil, "", old, "dev-2026.04.1"), w.push(nil, "", old, "dev-2026.04.3")}
			},
			[]string{"delete dev-age", "keep dev-last"},
		},
		"a dev version without a time was claimed before its month's end": {
			func(w *world, in *release.PruneInput) []string {
				for i := range in.Claims {
					in.Claims[i].ClaimedAt = time.Time{}
				}
				in.Now = time.Date(2026, 5, 30, 23, 0, 0, 0, time.UTC) // 29 days after April
				return []string{w.push(nil, "", old, "dev-2026.04.1"), w.push(nil, "", old, "dev-2026.04.3")}
			},
			[]string{"keep dev-age", "keep dev-last"},
		},
		"a dev version that was tagged as stable is no dev version": {
			func(w *world, in *release.PruneInput) []string {
				in.Policy.KeepDevLast = 0
				return []string{w.push(nil, "", old, "dev-2026.04.1", "2026.04.1")}
			},
			[]string{"keep stable"},
		},
		"a version that the ledger does not know stays": {
			func(w *world, in *release.PruneInput) []string {
				deprecate(in, version(2026, 3, 1), 60)
				return []string{w.push(nil, "", old, "dev-2026.02.1"), w.push(nil, "", old, "stable-2026.03.1")}
			},
			[]string{"keep unclaimed", "keep unclaimed"},
		},
		"commit tags alone have no age": {
			func(w *world, _ *release.PruneInput) []string { return []string{w.push(nil, "", old, "sha-abcdef0")} },
			[]string{"keep undated"},
		},
		"the newest confirmed are named as what a rollback goes to": {
			func(w *world, in *release.PruneInput) []string {
				in.Policy.KeepRollback = 2
				in.Verdicts = map[release.Version]release.Verdict{version(2026, 4, 8): release.VerdictPass, version(2026, 4, 6): release.VerdictFail}
				deprecate(in, version(2026, 4, 10), 1)
				return []string{
					w.push(nil, "", old, "stable-2026.04.2", "confirmed-2026.04.2"),
					w.push(nil, "", old, "stable-2026.04.4", "confirmed-2026.04.4"),
					w.push(nil, "", old, "stable-2026.04.6", "confirmed-2026.04.6"),
					w.push(nil, "", old, "stable-2026.04.8"),
					w.push(nil, "", old, "stable-2026.04.10", "confirmed-2026.04.10"),
				}
			},
			[]string{"keep stable", "keep rollback", "keep stable", "keep rollback", "keep grace"},
		},
		"what is in use by digest, tag or version stays": {
			func(w *world, in *release.PruneInput) []string {
				in.Policy.KeepDevLast = 0
				deprecate(in, version(2026, 4, 2), 60)
				running := w.push(nil, "", old, "dev-2026.04.1")
				in.InUse.Add(running, "acme")
				in.InUse.Add("ghcr.io/acme/agnes:dev-2026.04.3", "bravo")
				in.InUse.Add("2026.04.2", "charlie")
				part := w.push(nil, "", old)
				in.InUse.Add("ghcr.io/acme/agnes@"+part, "delta")
				return []string{running, w.push(nil, "", old, "dev-2026.04.3"), w.push(nil, "", old, "stable-2026.04.2"), part}
			},
			[]string{"keep in-use", "keep in-use", "keep in-use", "keep in-use"},
		},
		"parts of an index stay while one of their indexes does": {
			func(w *world, in *release.PruneInput) []string {
				in.Policy.KeepDevLast = 0
				shared, own, att := w.push(nil, "", old), w.push(nil, "", old), w.push(nil, "", old)
				inner := w.push([]string{own, att}, "", old)
				return []string{shared, own, att, inner, w.push([]string{shared, inner}, "", old, "dev-2026.04.1"), w.push([]string{shared}, "", old, "stable")}
			},
			[]string{"keep child", "delete untagged", "delete untagged", "delete untagged", "delete dev-age", "keep floating"},
		},
		"signatures and attestations go with what they are about": {
			func(w *world, in *release.PruneInput) []string {
				in.Policy.KeepDevLast = 0
				stays, goes := w.push(nil, "", old, "stable"), w.push(nil, "", old, "dev-2026.04.1")
				sbom := w.push(nil, "", old)
				var all []string
				for _, d := range []string{stays, goes} {
					all = append(all, w.push(nil, d, old), w.push(nil, "", 0, strings.Replace(d, ":", "-", 1)+".sig"), w.push([]string{sbom}, "", old, strings.Replace(d, ":", "-", 1)))
				}
				return append(all, w.push(nil, sbom, old), sbom)
			},
			[]string{
				"keep referrer", "keep referrer", "keep referrer", "delete referrer", "delete referrer", "delete referrer",
				"keep referrer", "keep child", // for the index about what stays has it
			},
		},
		"what a kept manifest is about stays": {
			func(w *world, in *release.PruneInput) []string {
				in.Policy.KeepDevLast = 0
				goes := w.push(nil, "", old, "dev-2026.04.1")
				return []string{goes, w.push(nil, goes, old, "v1")}
			},
			[]string{"keep subject", "keep foreign"},
		},
		"what has no tag stays a week with its parts, but not for what it is about": {
			func(w *world, in *release.PruneInput) []string {
				in.Policy.KeepDevLast = 0
				part, image := w.push(nil, "", old), w.push(nil, "", old, "dev-2026.04.1")
				return []string{
					part, w.push([]string{part}, "", 6*24*time.Hour), image, w.push(nil, image, time.Hour),
					w.push(nil, "", 8*24*time.Hour),
				}
			},
			[]string{"keep child", "keep untagged", "delete dev-age", "keep untagged", "delete untagged"},
		},
		"a signature of nothing goes like what has no tag": {
			func(w *world, _ *release.PruneInput) []string {
				none := "sha256-" + strings.Repeat("ab", 32)
				return []string{w.push(nil, "", old, none+".sig"), w.push(nil, "", time.Hour, none+".att"), w.push(nil, "sha256:"+strings.Repeat("ab", 32), old)}
			},
			[]string{"delete referrer", "keep untagged", "delete referrer"},
		},
		"what the list does not tell is kept with what it needs": {
			func(w *world, _ *release.PruneInput) []string {
				part, other := w.push(nil, "", old), w.push(nil, "", old)
				w.hidden[w.push([]string{part}, "", old, "stable")] = true
				moved := w.push([]string{other}, "", old, "dev")
				w.staleTags["dev"] = true
				return []string{part, other, moved}
			},
			[]string{"keep child", "keep child", "keep unlisted"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld()
			in := w.input()
			ledger(&in)
			digests := c.build(w, &in)
			base := w.input()
			in.Versions, in.Links, in.Unlisted = base.Versions, base.Links, base.Unlisted
			plan, err := release.Plan(in)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, digest := range digests {
				for _, v := range plan.Versions {
					if v.Digest == digest {
						got = append(got, string(v.Action)+" "+string(v.Rule))
						t.Logf("%v: %s: %s", v.Tags, v.Action, v.Reason)
					}
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestPlanRefusesToDecideWithoutAllFacts(t *testing.T) {
	t.Parallel()
	w := newWorld()
	part := w.push(nil, "", old)
	w.push([]string{part}, "", old, "dev-2026.04.1")
	for name, c := range map[string]struct {
		kind   problem.Kind
		change func(in *release.PruneInput)
	}{
		"a manifest that was not read": {problem.Inconclusive, func(in *release.PruneInput) { delete(in.Links, part) }},
		"a version twice":              {problem.Inconclusive, func(in *release.PruneInput) { in.Versions = append(in.Versions, in.Versions[0]) }},
		"no minimum age":               {problem.Usage, func(in *release.PruneInput) { in.Policy.MinUntaggedDays = 0 }},
		"negative days":                {problem.Usage, func(in *release.PruneInput) { in.Policy.DeprecatedDays = -1 }},
	} {
		in := w.input()
		ledger(&in)
		c.change(&in)
		if _, err := release.Plan(in); !problem.Is(err, c.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPlanNotesWhatItsRowsCannotSay(t *testing.T) {
	t.Parallel()
	w := newWorld()
	part := w.push(nil, "", old)
	w.push([]string{part}, "", old, "stable")
	w.drop(part)
	in := w.input()
	in.InUse.Add("stable-2026.01.7", "acme")
	in.InUse.Notes = []string{"bravo did not answer."}
	plan, err := release.Plan(in)
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(plan.Notes, "\n")
	for _, want := range []string{"bravo did not answer.", "is incomplete: its part " + part[:19], "stable-2026.01.7 is in use by acme and not in the registry."} {
		if !strings.Contains(all, want) {
			t.Errorf("expected %q in:\n%s", want, all)
		}
	}
}

func TestInUseTakesEveryKindOfReference(t *testing.T) {
	t.Parallel()
	digest := "sha256:" + strings.Repeat("0f", 32)
	for reference, want := range map[string][]string{
		"":                               nil,
		"2026.04.3":                      {"2026.04.3"},
		"stable-2026.04.3":               {"stable-2026.04.3"},
		digest:                           {digest},
		"stable@" + digest:               {digest, "stable"},
		"ghcr.io/acme/agnes:dev":         {"dev"},
		"127.0.0.1:5000/agnes":           nil,
		"127.0.0.1:5000/agnes:v1":        {"v1"},
		"ghcr.io/acme/agnes@" + digest:   {digest},
		"ghcr.io/a/b:stable@" + digest:   {digest, "stable"},
		" stable-2026.04.3\n":            {"stable-2026.04.3"},
		"localhost:5000/a/b/c@" + digest: {digest},
	} {
		var u release.InUse
		u.Add(reference, "acme")
		u.Add(reference, "acme")
		var got []string
		for name, who := range u.By {
			got = append(got, name)
			if len(who) != 1 {
				t.Errorf("%q: %v", reference, who)
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%q: expected %v, found %v", reference, want, got)
		}
	}
}
