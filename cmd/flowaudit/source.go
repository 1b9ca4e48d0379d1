package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flowaudit/flowaudit/kube"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
	"github.com/flowaudit/flowaudit/queries"
)

// source says where a subcommand has its objects from: files, or where it may
// go online an API server or the collector.
type source struct {
	env       environment
	manifests []string

	online *client // nil if there are files only
	cmd    *cobra.Command
	access kube.Access
	at     string // a time, of the collector's timeline
	// precise says that the command tells itself which policies of other kinds matter.
	precise bool
}

func newSource(cmd *cobra.Command, env environment) *source {
	s := &source{env: env}
	cmd.Flags().StringArrayVarP(&s.manifests, "manifests", "m", nil, "`file`, directory or - with the cluster's objects; may be repeated")
	return s
}

// newOnlineSource is a source that without files asks an API server or the collector.
func newOnlineSource(cmd *cobra.Command, c *client) *source {
	s := newSource(cmd, c.env)
	s.online, s.cmd = c, cmd
	fs := cmd.Flags()
	fs.StringVar(&s.access.Kubeconfig, "kubeconfig", "", "`file` that says how to reach the API server (default: $KUBECONFIG, or ~/.kube/config)")
	fs.StringVar(&s.access.Context, "context", "", "`name` of the kubeconfig's context (default: its current one)")
	fs.BoolVar(&s.access.InCluster, "in-cluster", false, "reach the API server by the service account of the pod that this runs in")
	fs.StringVar(&s.at, "at", "", "the cluster as the collector knows it of a `time`: back from now (2h, 30d), RFC 3339, or a local date")
	_ = cmd.RegisterFlagCompletionFunc("context", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return s.access.Contexts(c.env.getenv), cobra.ShellCompDirectiveNoFileComp
	})
	return s
}

// origin is where objects come from.
type origin uint8

const (
	fromFiles origin = iota
	fromServer
	fromCollector
)

// named reports whether somebody said on the command line to go online.
func (s *source) named() bool {
	return s.access.Wanted() || s.access.Context != "" || s.at != "" || s.cmd.Flags().Changed("server")
}

// origin decides where the objects come from: from what was named, else as
// kubectl would, else from the collector.
func (s *source) origin() (origin, error) {
	if s.online == nil {
		return fromFiles, nil
	}
	server := s.access.Wanted() || s.access.Context != ""
	collector := s.at != "" || s.cmd.Flags().Changed("server")
	switch {
	case len(s.manifests) > 0 && s.named():
		return 0, usageError{errors.New("--manifests has the objects in files: give it, or say whom to ask by --kubeconfig, --context, --in-cluster, --server or --at")}
	case server && collector:
		return 0, usageError{errors.New("--server and --at ask the collector, --kubeconfig, --context and --in-cluster the API server: give one")}
	case s.access.Kubeconfig != "" && s.access.InCluster:
		return 0, usageError{s.access.Validate("")}
	case len(s.manifests) > 0:
		return fromFiles, nil
	case collector || !server && s.env.getenv("FLOWAUDIT_SERVER") != "":
		return fromCollector, nil
	case s.access.Usual(s.env.getenv):
		return fromServer, nil
	case server:
		return 0, usageError{errors.New("--context needs a kubeconfig: name it by --kubeconfig or $KUBECONFIG")}
	}
	return fromCollector, nil
}

// objects reads the cluster's objects. Problems in them are not yet told.
func (s *source) objects(ctx context.Context) (*kube.Snapshot, error) {
	from, err := s.origin()
	if err != nil {
		return nil, err
	}
	switch from {
	case fromServer:
		return s.apiServer(ctx)
	case fromCollector:
		return s.collector(ctx, s.at)
	}
	return s.files(nil, s.manifests...)
}

// files reads files, as they are applied to a cluster if there is one.
func (s *source) files(under *kube.Snapshot, paths ...string) (*kube.Snapshot, error) {
	if len(paths) == 0 {
		return nil, usageError{errors.New("which objects? --manifests names files and directories with them")}
	}
	progress := newProgress(s.env, "reading manifests")
	defer progress.clear()
	return kube.Load(paths, kube.LoadOptions{
		Stdin:    s.env.stdin,
		Progress: func(done, all int64) { progress.show(done, all) },
		Under:    under,
	})
}

// apiServer reads the objects from an API server.
func (s *source) apiServer(ctx context.Context) (*kube.Snapshot, error) {
	progress := newProgress(s.env, "reading objects")
	defer progress.clear()
	ctx, cancel := context.WithTimeout(ctx, s.online.timeout)
	defer cancel()
	o, err := kube.Fetch(ctx, kube.FetchOptions{
		Access: s.access, UserAgent: "flowaudit/" + version,
		Progress: func(done int64) { progress.show(done, 0) },
	})
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil, fmt.Errorf("no answer from the API server of %s within %s: raise --timeout, or choose another --context", &s.access, s.online.timeout)
	}
	return o, err
}

// collector has the objects from the collector, as they are or were.
func (s *source) collector(ctx context.Context, at string) (*kube.Snapshot, error) {
	req := &flowauditv1.ObjectsRequest{}
	if at != "" {
		t, err := queries.ParseSince(at, s.env.now())
		if err != nil {
			return nil, usageError{fmt.Errorf("--at: %w", err)}
		}
		req.At = t.UnixMilli()
	}
	progress := newProgress(s.env, "reading objects")
	defer progress.clear()
	var objects [][]byte
	var limits []string
	refused := false
	err := s.online.ask(ctx, false, func(ctx context.Context, q flowauditv1.QueryClient) error {
		stream, err := q.Objects(ctx, req, compressed())
		for err == nil {
			var part *flowauditv1.ObjectsResponse
			if part, err = stream.Recv(); err != nil {
				break
			}
			objects, limits = append(objects, part.GetObjects()...), append(limits, part.GetLimits()...)
			progress.show(int64(len(objects)), 0)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		refused = status.Code(err) == codes.Unavailable
		return err
	})
	if refused {
		return nil, fmt.Errorf("%w; or give the objects in files by --manifests, or an API server by --kubeconfig", err)
	}
	if err != nil {
		return nil, err
	}
	o := kube.Decode(objects)
	o.Limits = limits
	return o, nil
}

// usable tells the problems of objects, and fails if there are any: an answer
// without the object that cannot be read may be wrong.
func (s *source) usable(o *kube.Snapshot) error {
	for _, p := range o.Problems {
		fmt.Fprintln(s.env.stderr, p.Error())
	}
	if n := len(o.Problems); n > 0 {
		return fmt.Errorf("read manifests: %d %s: correct %s, or leave the file out", n, plural(uint64(n), "problem"), itOrThem(n))
	}
	s.tellLimits(o)
	if len(o.OtherPolicies) > 0 && !s.precise {
		names := make([]string, len(o.OtherPolicies))
		for i, p := range o.OtherPolicies {
			names[i] = p.String()
		}
		fmt.Fprintf(s.env.stderr, "warning: not taken into account: %s\n", some(names))
	}
	return nil
}

func (s *source) tellLimits(o *kube.Snapshot) {
	for _, l := range o.Limits {
		fmt.Fprintf(s.env.stderr, "warning: %s\n", l)
	}
}

func itOrThem(n int) string {
	if n == 1 {
		return "it"
	}
	return "them"
}

// some lists the first of many names.
func some(names []string) string {
	const shown = 5
	if len(names) <= shown {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:shown], ", "), len(names)-shown)
}

// load reads the objects and compiles the policies.
func (s *source) load(ctx context.Context) (*judged, error) {
	o, err := s.objects(ctx)
	if err != nil {
		return nil, err
	}
	return s.compile(o)
}

func (s *source) compile(o *kube.Snapshot) (*judged, error) {
	if err := s.usable(o); err != nil {
		return nil, err
	}
	j, err := judge(o)
	if err != nil {
		return nil, err
	}
	j.tellProblems(s)
	return j, nil
}
