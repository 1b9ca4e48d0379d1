package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/flowaudit/flowaudit/kube"
)

// Exit codes of the subcommands of policy.
const (
	exitUndecided = 2 // a connection could not be decided
	exitFound     = 3 // lint found nothing worse than a warning
	exitFoundErr  = 4 // lint found an error
	exitChanged   = 5 // diff --exit-code found a change
)

func newPolicy(env environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Say what NetworkPolicies allow, why, and what is wrong with them",
		Long: `Judges NetworkPolicies from files, without a cluster: who may reach whom, which
rule decides, what a change would do, and what the policies say other than was
likely meant.

--manifests takes files, directories and - for standard input, such as the
output of

  kubectl get ns,nodes,pods,svc,netpol -A -o yaml

Workloads without pods stand for one pod of their name.`,
		Example: `  flowaudit policy eval --manifests cluster/ --connections connections.csv
  flowaudit policy explain --manifests cluster/ --from shop/web-0 --to shop/db-0 --port 3306
  flowaudit policy lint --manifests cluster/`,
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(newPolicyEval(env), newPolicyExplain(env), newPolicyMatrix(env), newPolicyDiff(env), newPolicyLint(env))
	return cmd
}

// source says where a subcommand of policy has its objects from.
type source struct {
	env       environment
	manifests []string
}

func newSource(cmd *cobra.Command, env environment) *source {
	s := &source{env: env}
	cmd.Flags().StringArrayVarP(&s.manifests, "manifests", "m", nil, "`file`, directory or - with the cluster's objects; may be repeated")
	return s
}

// objects reads the cluster's objects. Problems in them are not yet told.
func (s *source) objects(more ...string) (*kube.Snapshot, error) {
	paths := append(append([]string(nil), s.manifests...), more...)
	if len(paths) == 0 {
		return nil, usageError{errors.New("which objects? --manifests names files and directories with them")}
	}
	progress := newProgress(s.env, "reading manifests")
	defer progress.clear()
	return kube.Load(paths, kube.LoadOptions{
		Stdin:    s.env.stdin,
		Progress: func(done, all int64) { progress.show(done, all) },
	})
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
	if len(o.OtherPolicies) > 0 {
		fmt.Fprintf(s.env.stderr, "warning: not taken into account: %s\n", some(o.OtherPolicies))
	}
	return nil
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

// noArguments refuses arguments in a way that says what was likely meant.
func noArguments(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unexpected argument %q: files are given by flags, such as --manifests %s", args[0], args[0])}
	}
	return nil
}

// oneOf checks a flag that has few values.
func oneOf(flag, value string, values ...string) error {
	for _, v := range values {
		if v == value {
			return nil
		}
	}
	return usageError{fmt.Errorf("--%s %q: want %s or %s", flag, value, strings.Join(values[:len(values)-1], ", "), values[len(values)-1])}
}

// choices registers a flag of few values, and their completion.
func choices(cmd *cobra.Command, into *string, flag, short, fallback, usage string, values ...string) {
	cmd.Flags().StringVarP(into, flag, short, fallback, usage)
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

// progress tells on a terminal how far a long piece of work is.
type progress struct {
	w     io.Writer // nil where nobody looks
	now   func() time.Time
	what  string
	last  time.Time
	shown bool
}

const progressEvery = 200 * time.Millisecond

func newProgress(env environment, what string) *progress {
	p := &progress{now: env.now, what: what}
	if env.stderrTerminal {
		p.w, p.last = env.stderr, env.now()
	}
	return p
}

// show tells that a part is done; all is 0 where it is not known.
func (p *progress) show(done, all int64) {
	if p.w == nil {
		return
	}
	now := p.now()
	if now.Sub(p.last) < progressEvery {
		return
	}
	p.last, p.shown = now, true
	if all > 0 {
		fmt.Fprintf(p.w, "\r\x1b[K%s: %d %%", p.what, done*100/all)
		return
	}
	fmt.Fprintf(p.w, "\r\x1b[K%s: %d", p.what, done)
}

// clear removes what was shown.
func (p *progress) clear() {
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = false
	}
}

// openInput opens a file, or standard input for "-".
func openInput(env environment, path string) (io.ReadCloser, int64, error) {
	if path == "-" {
		return io.NopCloser(env.stdin), 0, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}
