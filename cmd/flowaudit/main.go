// Command flowaudit asks a collector who talked to whom, and who was refused.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flowaudit/flowaudit/agent"
	"github.com/flowaudit/flowaudit/proto/dial"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
	"github.com/flowaudit/flowaudit/proto/zstd"
)

// version is set by the linker.
var version = "devel"

// Exit codes.
const (
	exitOK        = 0
	exitError     = 1 // no answer, or, of status, a problem
	exitUsage     = 2
	exitInterrupt = 130 // as a shell reports SIGINT
)

func main() {
	zstd.Register()
	signal.Ignore(syscall.SIGPIPE) // a reader that has seen enough is no failure: writing tells
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, environment{
		name: filepath.Base(os.Args[0]), args: os.Args[1:], stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv,
		now: time.Now, terminal: isTerminal(os.Stdout), stderrTerminal: isTerminal(os.Stderr),
		inspect: inspectNode,
	}))
}

// environment is all that a command sees of the world.
type environment struct {
	name           string
	args           []string
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	now            func() time.Time
	terminal       bool // standard output is one
	stderrTerminal bool
	inspect        func() (agent.Node, error) // looks at the node that it runs on
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// usageError is the user's to mend.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// exitCode carries an exit code that was explained already.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit %d", int(e)) }

func run(ctx context.Context, env environment) int {
	root := newRoot(env)
	began := false
	root.PersistentPreRun = func(*cobra.Command, []string) { began = true }
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !began {
		err = usageError{err}
	}
	var usage usageError
	var code exitCode
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &code):
		return int(code)
	case ctx.Err() != nil:
		return exitInterrupt
	case errors.Is(err, syscall.EPIPE):
		return exitOK // the reader has seen enough
	case errors.As(err, &usage):
		fmt.Fprintf(env.stderr, "%s: %v\nSee %s --help.\n", root.DisplayName(), err, cmd.CommandPath())
		return exitUsage
	}
	fmt.Fprintf(env.stderr, "%s: %v\n", root.DisplayName(), err)
	return exitError
}

// client is what every command needs to ask.
type client struct {
	env     environment
	dial    dial.Options
	asks    credential
	timeout time.Duration
}

func newRoot(env environment) *cobra.Command {
	c := &client{env: env, dial: dial.Options{Address: env.getenv("FLOWAUDIT_SERVER")}, asks: credential{getenv: env.getenv}}
	if c.dial.Address == "" {
		c.dial.Address = flowauditv1.DefaultAddress
	}
	root := &cobra.Command{
		Use:   "flowaudit",
		Short: "Who talked to whom, who was refused, and how sure that is",
		Long: `flowaudit asks a flowaudit-collector who talked to whom in a Kubernetes cluster,
who tried and was refused, and what the answer stands on.`,
		Example: `  flowaudit observe --verdict denied --since 1h
  flowaudit observe -n shop -f
  flowaudit status`,
		SilenceErrors: true, SilenceUsage: true,
	}
	if name, ok := strings.CutPrefix(env.name, "kubectl-"); ok {
		root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl " + name}
	}
	root.SetArgs(env.args)
	root.SetOut(env.stdout)
	root.SetErr(env.stderr)
	fs := root.PersistentFlags()
	fs.StringVar(&c.dial.Address, "server", c.dial.Address, "`address` of the collector, host:port or unix:PATH (or $FLOWAUDIT_SERVER)")
	fs.DurationVar(&c.timeout, "timeout", 30*time.Second, "how long to wait for an answer; following has no end")
	c.dial.Flags(fs)
	c.dial.TokenFlag(fs)
	c.asks.flags(fs)
	root.AddCommand(newObserve(c), newStatus(c), newQuery(c), newSQL(c), newSuggest(c), newReplay(c), newUnused(c), newDoctor(c), newAlerts(c), newEvidence(c), newPolicy(c), newVersion(env))
	return root
}

func newVersion(env environment) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Run: func(*cobra.Command, []string) { fmt.Fprintln(env.stdout, "flowaudit", version) },
	}
}

// ask connects and gives the service to f.
func (c *client) ask(ctx context.Context, unending bool, f func(context.Context, flowauditv1.QueryClient) error) error {
	return c.connect(ctx, unending, func(ctx context.Context, conn *grpc.ClientConn) error {
		return f(ctx, flowauditv1.NewQueryClient(conn))
	})
}

func (c *client) connect(ctx context.Context, unending bool, f func(context.Context, *grpc.ClientConn) error) error {
	to := c.dial
	if to.TokenFile == "" && to.Cert == "" && !c.asks.none {
		to.Token, to.ClientCertificate = c.asks.token, c.asks.certificate
	}
	conn, err := to.Conn()
	if err != nil {
		return usageError{err}
	}
	defer conn.Close()
	if !unending {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.timeout)
		defer cancel()
	}
	return c.explain(f(ctx, conn))
}

// explain says in the user's words why the collector did not answer.
func (c *client) explain(err error) error {
	s, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	switch s.Code() {
	case codes.InvalidArgument, codes.NotFound:
		return usageError{errors.New(s.Message())}
	case codes.Unavailable:
		return fmt.Errorf("connect to the collector at %s: %s: start flowaudit-collector, or name it with --server", c.dial.Address, dialFault(s.Message()))
	case codes.Unauthenticated:
		return fmt.Errorf("the collector at %s does not know who asks: %s", c.dial.Address, c.asks.explain(strings.TrimPrefix(s.Message(), "transport: per-RPC creds failed due to error: ")))
	case codes.PermissionDenied:
		return fmt.Errorf("the collector at %s refuses: %s", c.dial.Address, s.Message())
	case codes.Unimplemented:
		return fmt.Errorf("the collector at %s does not know this question: it is older than this flowaudit %s", c.dial.Address, version)
	case codes.DeadlineExceeded:
		return fmt.Errorf("no answer from the collector at %s within %s: narrow the question, or raise --timeout", c.dial.Address, c.timeout)
	}
	return fmt.Errorf("ask the collector at %s: %s", c.dial.Address, s.Message())
}

// dialFault takes a fault out of gRPC's words about it.
func dialFault(message string) string {
	if _, quoted, ok := strings.Cut(message, "connection error: desc = "); ok {
		if text, err := strconv.Unquote(quoted); err == nil {
			message = text
		}
	}
	return strings.TrimPrefix(message, "transport: Error while dialing: ")
}

// compressed asks for compressed answers.
func compressed() grpc.CallOption { return grpc.UseCompressor(zstd.Name) }
