package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	_ "time/tzdata" // schedules of CronJobs name zones that a small image lacks

	"github.com/spf13/cobra"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/kube"
	"github.com/flowaudit/flowaudit/policy/suggest"
)

// suggestCommand is the subcommand's options.
type suggestCommand struct {
	past
	namespaces, workloads []string
	all, egress, ingress  bool
	mode, isolation       string
	cidrSlack             uint64
	portSlack             float64
	clusterCIDRs, caches  []string
	cronJobs              []string
	access                kube.Access // of cronJobs, where they are the cluster's
	readyAfter            string
	acceptScans, reject   []string
	explain, requireReady bool
	output, dir           string
}

func newSuggest(c *client) *cobra.Command {
	o := &suggestCommand{past: past{client: c}}
	cmd := &cobra.Command{
		Use:   "suggest",
		Short: "Suggest least-privilege policies from recorded traffic, and prove them on it",
		Long: `Makes one NetworkPolicy a workload from what was seen, and a default deny for its
namespace: the smallest set of stable labels that selects exactly that workload,
now and as far back as was recorded; pod ports, by name where every pod has it;
addresses for what no label can select.

Nothing is learnt from traffic that was denied, never answered, or passed against
the policies. What looks like a scan is set aside and listed. Then the result is
judged by all recorded traffic: what would be refused, what was denied and would
pass, and which ports between workloads are permitted and were never seen.

Policies go to standard output, all else to standard error.

Exit codes: 0; 1 no answer; 5 the proof failed, or with --require-ready a
workload was not watched enough.`,
		Example: `  # policies for a namespace, with the traffic behind each rule
  flowaudit suggest -n shop --since 30d --explain

  # all namespaces, a file each
  flowaudit suggest -A -o dir --dir policies/

  # narrow the policies that are there to what was seen
  flowaudit suggest -n shop --mode tighten

  # CronJobs are waited for
  flowaudit suggest -n shop --cronjobs cluster --require-ready`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringSliceVarP(&o.namespaces, "namespace", "n", nil, "suggest for the workloads of `namespaces`; their peers may be anywhere")
	fs.BoolVarP(&o.all, "all-namespaces", "A", false, "suggest for all namespaces")
	fs.StringSliceVar(&o.workloads, "workload", nil, "suggest for these `workloads` only: [namespace/][kind/]name")
	o.register(fs, "30d")
	fs.BoolVar(&o.egress, "egress", false, "egress only")
	fs.BoolVar(&o.ingress, "ingress", false, "ingress only")
	choices(cmd, &o.mode, "mode", "", "add", "what becomes of the policies that are there: add keeps them, replace deletes them, tighten narrows them to what was seen", "add", "replace", "tighten")
	choices(cmd, &o.isolation, "isolation", "", "workload", "what is kept apart: workload, or the coarser namespace", "workload", "namespace")
	fs.Uint64Var(&o.cidrSlack, "cidr-slack", 0, "how many never-seen `addresses` one CIDR may cover")
	fs.StringSliceVar(&o.clusterCIDRs, "cluster-cidr", nil, "`CIDRs` of pods and Services, without which private ranges are not widened by --cidr-slack")
	fs.Float64Var(&o.portSlack, "port-slack", 0, "the `share` of never-seen ports that a range of ports may cover, below 1")
	fs.StringSliceVar(&o.caches, "dns-cache", nil, "`addresses` of the node-local DNS cache, whose packets nobody can see: the link-local one and the DNS Service's")
	fs.StringArrayVar(&o.cronJobs, "cronjobs", nil, "CronJobs whose schedules are waited for: cluster asks the API server; or a `file`, directory or - with them; may be repeated")
	fs.StringVar(&o.access.Kubeconfig, "kubeconfig", "", "`file` that says how to reach the API server, for --cronjobs cluster (default: $KUBECONFIG, or ~/.kube/config)")
	fs.StringVar(&o.access.Context, "context", "", "`name` of the kubeconfig's context (default: its current one)")
	fs.StringVar(&o.readyAfter, "ready-after", "7d", "how long a workload has to be watched")
	fs.StringSliceVar(&o.acceptScans, "accept-scan", nil, "learn from this `source`, though it looks like a scan: namespace/workload or CIDR")
	fs.StringSliceVar(&o.reject, "reject", nil, "learn nothing from traffic with this `end`: namespace/workload or CIDR")
	fs.BoolVar(&o.explain, "explain", false, "write the traffic behind each rule")
	fs.BoolVar(&o.requireReady, "require-ready", false, "exit with 5 if a workload was not watched enough")
	choices(cmd, &o.output, "output", "o", "yaml", "`format`: yaml, json (with the proof) or dir (a file a policy)", "yaml", "json", "dir")
	fs.StringVar(&o.dir, "dir", "policies", "where -o dir writes")
	return cmd
}

func (o *suggestCommand) options(ctx context.Context) (suggest.Options, error) {
	out := suggest.Options{
		Namespaces: o.namespaces, NoEgress: o.ingress && !o.egress, NoIngress: o.egress && !o.ingress, Mode: suggest.Mode(o.mode),
		Isolation: suggest.Isolation(o.isolation), CIDRSlack: o.cidrSlack, PortSlack: o.portSlack, AcceptScans: o.acceptScans, Reject: o.reject,
	}
	if len(o.namespaces)+len(o.workloads) == 0 && !o.all {
		return out, usageError{errors.New("for which workloads? -n names namespaces, -A means all, --workload names single ones")}
	}
	if o.all && len(o.namespaces) > 0 {
		return out, usageError{errors.New("-A and -n exclude each other")}
	}
	var sel flow.Selector
	for _, w := range o.workloads {
		if err := setWorkload(func(s *flow.Selector) *flow.Ends { return &s.Either })(&sel, w); err != nil {
			return out, usageError{fmt.Errorf("--workload: %w", err)}
		}
	}
	out.Workloads = sel.Either.Workloads
	for _, text := range o.clusterCIDRs {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return out, usageError{fmt.Errorf("--cluster-cidr %q is no CIDR", text)}
		}
		out.ClusterCIDRs = append(out.ClusterCIDRs, p.Masked())
	}
	for _, text := range o.caches {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return out, usageError{fmt.Errorf("--dns-cache %q is no IP address", text)}
		}
		out.DNSCaches = append(out.DNSCaches, a)
	}
	var err error
	if out.ReadyAfter, err = parseDays("ready-after", o.readyAfter, o.env.now()); err != nil {
		return out, err
	}
	if out.Schedules, err = o.schedules(ctx); err != nil {
		return out, err
	}
	if err := out.Validate(); err != nil {
		return out, usageError{err}
	}
	return out, nil
}

// fromCluster stands for the API server where files are named.
const fromCluster = "cluster"

// schedules reads CronJobs; nil if none are asked for.
func (o *suggestCommand) schedules(ctx context.Context) ([]suggest.Schedule, error) {
	if len(o.cronJobs) == 0 {
		return nil, nil
	}
	files := slices.DeleteFunc(slices.Clone(o.cronJobs), func(s string) bool { return s == fromCluster })
	var out []suggest.Schedule
	if len(files) < len(o.cronJobs) {
		if !o.access.Usual(o.env.getenv) {
			return nil, usageError{errors.New("--cronjobs cluster needs a kubeconfig: name it by --kubeconfig or $KUBECONFIG")}
		}
		ctx, cancel := context.WithTimeout(ctx, o.timeout)
		defer cancel()
		jobs, err := kube.FetchCronJobs(ctx, kube.FetchOptions{Access: o.access, UserAgent: "flowaudit/" + version})
		if err != nil {
			return nil, err
		}
		out = suggest.Schedules(jobs)
	}
	if len(files) == 0 {
		return out, nil
	}
	objects, err := kube.Load(files, kube.LoadOptions{Stdin: o.env.stdin})
	if err != nil {
		return nil, err
	}
	for _, p := range objects.Problems {
		fmt.Fprintln(o.env.stderr, p.Error())
	}
	return append(out, suggest.Schedules(objects.CronJobs)...), nil
}

func (o *suggestCommand) run(ctx context.Context) error {
	if err := oneOf("output", o.output, "yaml", "json", "dir"); err != nil {
		return err
	}
	options, err := o.options(ctx)
	if err != nil {
		return err
	}
	since, until, err := o.bounds()
	if err != nil {
		return err
	}
	h, err := o.fetch(ctx, since, until)
	if err != nil {
		return err
	}
	progress := newProgress(o.env, "suggesting")
	options.Progress = func(doing string, done float64) {
		progress.what = doing
		progress.show(int64(done*100), 100)
	}
	r, err := suggest.Run(h, options)
	progress.clear()
	if err != nil {
		return err
	}
	if err := o.write(r); err != nil {
		return err
	}
	if err := r.WriteSummary(o.env.stderr); err != nil {
		return err
	}
	writeCoverage(o.env.stderr, h.Coverage, o.env.now().Location())
	if !r.Proven() || o.requireReady && !r.Ready {
		return exitCode(exitRefused)
	}
	return nil
}

func (o *suggestCommand) write(r *suggest.Result) error {
	switch o.output {
	case "json":
		return r.WriteJSON(o.env.stdout)
	case "dir":
		return o.writeFiles(r)
	}
	return r.WriteYAML(o.env.stdout, o.explain)
}

// writeFiles writes a file a policy, in a directory a namespace.
func (o *suggestCommand) writeFiles(r *suggest.Result) error {
	for i := range r.Policies {
		p := &r.Policies[i]
		text, err := p.YAML(o.explain)
		if err != nil {
			return err
		}
		path := filepath.Join(o.dir, p.Object.Namespace, p.Object.Name+".yaml")
		if strings.ContainsAny(p.Object.Namespace+p.Object.Name, `/\`) {
			return fmt.Errorf("write policy: %s/%s is no name of a Kubernetes object", p.Object.Namespace, p.Object.Name)
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("write policy: %w", err)
		}
		if err := os.WriteFile(path, text, 0o644); err != nil {
			return fmt.Errorf("write policy: %w", err)
		}
		fmt.Fprintln(o.env.stdout, path)
	}
	for _, n := range r.Delete {
		fmt.Fprintf(o.env.stderr, "to be deleted: kubectl delete networkpolicy -n %s %s\n", n.Namespace, n.Name)
	}
	return nil
}
