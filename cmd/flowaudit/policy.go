package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// Exit codes of the subcommands of policy.
const (
	exitUndecided = 2 // a connection could not be decided
	exitFound     = 3 // lint found nothing worse than a warning
	exitFoundErr  = 4 // lint found an error
	exitChanged   = 5 // diff --exit-code found a change
)

func newPolicy(c *client) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Say what NetworkPolicies allow, why, and what is wrong with them",
		Long: `Judges NetworkPolicies, of the cluster or from files: who may reach whom, which
rule decides, what a change would do, and what the policies say other than was
likely meant.

The objects come from
  --manifests    files, directories and - for standard input, without a cluster;
  --kubeconfig, --context or --in-cluster
                 an API server, with the rights in deploy/rbac/reader.yaml;
  --server or --at
                 the collector, as it knows them now or of an earlier time.
Without any of these the collector of $FLOWAUDIT_SERVER is asked if that is set,
else the API server that kubectl would ask, else the collector at its usual
address.

In files, workloads without pods stand for one pod of their name.`,
		Example: `  flowaudit policy explain --from shop/web-0 --to shop/db-0 --port 3306
  flowaudit policy lint --context prod
  flowaudit policy diff --after policies-new/
  flowaudit policy eval --manifests cluster/ --connections connections.csv`,
		Args: cobra.NoArgs,
		// A misspelt subcommand is a mistake, and not a question for help.
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newPolicyEval(c), newPolicyExplain(c), newPolicyMatrix(c), newPolicyDiff(c), newPolicyLint(c))
	return cmd
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
