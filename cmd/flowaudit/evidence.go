package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	proofs "github.com/flowaudit/flowaudit/evidence"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
	"github.com/flowaudit/flowaudit/queries"
)

func newEvidence(c *client) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "evidence",
		Short: "Prove that recorded flows are those that were stored",
		Long: `A collector with --evidence-key signs what it stores. A bundle of it can be verified
anywhere, with the public key alone: what was altered, removed, added or brought out of
order since is named. docs/evidence.md says what that proves, and what not.`,
		Example: `  flowaudit evidence keygen evidence.key
  flowaudit evidence export --since 2d -n shop -o shop.zip
  flowaudit evidence verify shop.zip --key evidence.key.pub`,
	}
	cmd.AddCommand(newKeygen(c), newExport(c), newVerify(c))
	return cmd
}

func newKeygen(c *client) *cobra.Command {
	return &cobra.Command{
		Use:   "keygen FILE",
		Short: "Make a key for the collector, and its public part in FILE.pub",
		Long: `Makes an ed25519 key for the collector's --evidence-key, and beside it, in FILE.pub, the
public key that verifies. No file is overwritten.`,
		Example:           "  flowaudit evidence keygen evidence.key",
		Args:              exactly("FILE", "where is the key to be written?"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(_ *cobra.Command, args []string) error { return keygen(c.env, args[0]) },
	}
}

// exactly wants one argument.
func exactly(name, question string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usageError{fmt.Errorf("%s give one %s", question, name)}
		}
		return nil
	}
}

func keygen(env environment, path string) error {
	private, public, err := proofs.GenerateKey()
	if err != nil {
		return err
	}
	for _, f := range []struct {
		path string
		text []byte
		mode os.FileMode
	}{{path, private, 0o600}, {path + ".pub", public, 0o644}} {
		if err := writeNew(f.path, f.text, f.mode); err != nil {
			return err
		}
	}
	key, err := proofs.ParsePublicKey(public)
	if err != nil {
		return err
	}
	fmt.Fprintf(env.stdout, "%s: for the collector's --evidence-key; keep it secret\n%s.pub: for flowaudit evidence verify; SHA-256 of the key %s\n", path, path, proofs.Fingerprint(key))
	return nil
}

func writeNew(path string, text []byte, mode os.FileMode) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return fmt.Errorf("write key: %w: name a new file", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(text); err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	return nil
}

// evidenceExport is the subcommand's options.
type evidenceExport struct {
	*client
	since, until, namespace, file string
}

func newExport(c *client) *cobra.Command {
	o := &evidenceExport{client: c}
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write a bundle of flows, policies, labels, gaps and proofs",
		Long: `Writes what was stored in a time into one file: flows, policies and labels as they were,
what could not be seen, and what proves them. A bundle of a namespace shows its flows
only, and proves that there were no others.`,
		Example: `  flowaudit evidence export --since 2d -o all.zip
  flowaudit evidence export --since 2026-03-01 --until 2026-03-08 -n shop -o shop.zip`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	fs := cmd.Flags()
	fs.StringVar(&o.since, "since", "1h", "what was stored from a `time` on: back from now (2h, 30d), RFC 3339, or a local date; all for the first that is kept")
	fs.StringVar(&o.until, "until", "", "and until a `time` (default: now)")
	fs.StringVarP(&o.namespace, "namespace", "n", "", "the flows of a `namespace` only; an empty one is of flows that have none (default: all)")
	fs.StringVarP(&o.file, "output", "o", "", "write to a new `file` (default: evidence-TIME.zip)")
	return cmd
}

func (o *evidenceExport) run(cmd *cobra.Command) error {
	req := &flowauditv1.ExportRequest{Namespace: o.namespace, Everyone: !cmd.Flags().Changed("namespace")}
	now := o.env.now()
	for _, t := range []struct {
		flag, text string
		to         *int64
	}{{"since", o.since, &req.Since}, {"until", o.until, &req.Until}} {
		if t.text == "" || t.flag == "since" && t.text == "all" {
			continue
		}
		at, err := queries.ParseSince(t.text, now)
		if err != nil {
			return usageError{fmt.Errorf("--%s: %w", t.flag, err)}
		}
		*t.to = at.UnixMilli()
	}
	path := o.file
	if path == "" {
		path = "evidence-" + now.UTC().Format("20060102T150405Z") + ".zip"
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return usageError{fmt.Errorf("write bundle: %w: name a new file by -o", err)}
	}
	n, err := o.receive(cmd.Context(), req, f)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	fmt.Fprintf(o.env.stdout, "%s: %d bytes\n", path, n)
	return nil
}

// receive writes what the collector sends.
func (o *evidenceExport) receive(ctx context.Context, req *flowauditv1.ExportRequest, f io.Writer) (n int64, err error) {
	progress := newProgress(o.env, "receiving evidence")
	defer progress.clear()
	to := bufio.NewWriter(f)
	err = o.connect(ctx, true, func(ctx context.Context, conn *grpc.ClientConn) error {
		stream, err := flowauditv1.NewEvidenceClient(conn).Export(ctx, req)
		for err == nil {
			var part *flowauditv1.ExportResponse
			if part, err = stream.Recv(); err != nil {
				break
			}
			n += int64(len(part.GetPart()))
			progress.show(n, 0)
			_, err = to.Write(part.GetPart())
		}
		if errors.Is(err, io.EOF) {
			return to.Flush()
		}
		return err
	})
	return n, err
}

func newVerify(c *client) *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Check a bundle offline, and name what was altered",
		Long: `Checks a bundle with the public key alone. It names the first record that was altered,
removed, added or brought out of order, by file, line, batch and agent, and exits with 1.`,
		Example: "  flowaudit evidence verify shop.zip --key evidence.key.pub",
		Args:    exactly("FILE", "which bundle?"),
		RunE:    func(_ *cobra.Command, args []string) error { return verifyBundle(c.env, args[0], key) },
	}
	cmd.Flags().StringVar(&key, "key", "", "PEM `file` of the public key, which flowaudit evidence keygen has written")
	return cmd
}

func verifyBundle(env environment, path, keyFile string) error {
	if keyFile == "" {
		return usageError{errors.New("which key? --key names the file with the public key")}
	}
	text, err := os.ReadFile(keyFile)
	if err != nil {
		return usageError{fmt.Errorf("--key: %w", err)}
	}
	public, err := proofs.ParsePublicKey(text)
	if err != nil {
		return usageError{fmt.Errorf("--key %s: %w", keyFile, err)}
	}
	f, err := os.Open(path)
	if err != nil {
		return usageError{fmt.Errorf("open bundle: %w", err)}
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("open bundle: %w", err)
	}
	s, err := proofs.Verify(f, info.Size(), public)
	if err != nil {
		return fmt.Errorf("verify %s: %w", path, err)
	}
	showSummary(env.stdout, path, s)
	return nil
}

func showSummary(w io.Writer, path string, s *proofs.Summary) {
	what := "all namespaces"
	if !s.Manifest.Everyone {
		what = "namespace " + s.Manifest.Namespace
		if s.Manifest.Namespace == "" {
			what = "flows of no namespace"
		}
	}
	since := "the first that was kept"
	if s.Manifest.Since > 0 {
		since = moment(s.Manifest.Since)
	}
	fmt.Fprintf(w, "%s: nothing was altered, removed or added\n", path)
	fmt.Fprintf(w, "of %s, stored from %s to %s, exported %s\n", what, since, moment(s.Manifest.Until), moment(s.Manifest.Made))
	fmt.Fprintf(w, "%d records of flows in %d batches of %d agents under %d checkpoints; %d changes of policies and labels; %d gaps\n",
		s.Flows, s.Batches, s.Agents, s.Checkpoints, s.Objects, s.Gaps)
	if s.Deleted > 0 {
		fmt.Fprintf(w, "%d more were deleted by retention, as its tombstones say\n", s.Deleted)
	}
}

func moment(ms int64) string { return time.UnixMilli(ms).UTC().Format(time.RFC3339) }
