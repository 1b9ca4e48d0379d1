package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
)

// policyExplain is the subcommand's options.
type policyExplain struct {
	*source
	from, to, port, protocol string
	output                   string
}

func newPolicyExplain(c *client) *cobra.Command {
	o := &policyExplain{}
	cmd := &cobra.Command{
		Use:   "explain",
		Short: "Say which policies decide about a connection, and what would allow it",
		Long: `Says whether policies allow a connection and which of them decide. Of a denial
it names the rule that came closest, the one thing that fails, and the smallest
change that would allow it.

--at explains by the policies, labels and addresses of an earlier time, as far as
the collector knows them. A workload of which no pod of that time is remembered
stands for one pod of its name.

Policies of other kinds, such as Cilium's, are not judged; those that select an
end are named.

Exit codes: 0 allowed or denied; 2 it cannot be decided; 1 the objects cannot be
read, or an end is not among them.`,
		Example: `  flowaudit policy explain --from shop/web-0 --to shop/db-0 --port 3306
  flowaudit policy explain --server collector:4245 --at 2h --from shop/web-0 --to shop/db-0 --port 3306
  flowaudit policy explain --manifests cluster/ --from shop/web-0 --to shop/db-0 --port 3306
  flowaudit policy explain --manifests cluster/ --from shop/api-0 --to 203.0.113.7 --port 443 -o json`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	o.source = newOnlineSource(cmd, c)
	o.precise = true
	fs := cmd.Flags()
	fs.StringVar(&o.from, "from", "", "the `end` that connects: namespace/pod, or an address")
	fs.StringVar(&o.to, "to", "", "the `end` that is connected to: namespace/pod, or an address")
	fs.StringVar(&o.port, "port", "", "the destination's port, a `number`")
	choices(cmd, &o.protocol, "protocol", "", "tcp", "`protocol`: tcp, udp, sctp, icmp, icmpv6, or a number", "tcp", "udp", "sctp", "icmp", "icmpv6")
	choices(cmd, &o.output, "output", "o", "text", "`format`: text or json", "text", "json")
	return cmd
}

func (o *policyExplain) run(ctx context.Context) error {
	if err := oneOf("output", o.output, "text", "json"); err != nil {
		return err
	}
	if o.from == "" || o.to == "" {
		return usageError{errors.New("which connection? --from and --to name its ends")}
	}
	protocol, err := flow.ParseProtocol(o.protocol)
	if err != nil {
		return usageError{fmt.Errorf("--protocol: %w", err)}
	}
	port, err := parsePort(o.port)
	if err != nil {
		return usageError{fmt.Errorf("--%w", err)}
	}
	if port == 0 && protocol.HasPorts() {
		return usageError{fmt.Errorf("which port? --port is needed for %s", protocol)}
	}
	j, err := o.load(ctx)
	if err != nil {
		return err
	}
	src, err := j.find(o.from)
	if err != nil {
		return fmt.Errorf("--from: %w", err)
	}
	dst, err := j.find(o.to)
	if err != nil {
		return fmt.Errorf("--to: %w", err)
	}
	c := connection(src, dst, protocol, port)
	x := j.policies.Explain(&c)
	if err := o.show(j, x, j.otherwise(src, dst)); err != nil {
		return err
	}
	if x.Verdict == flow.VerdictUnknown.String() {
		return exitCode(exitUndecided)
	}
	return nil
}

// explained is the JSON of an explanation: with where its policies are written.
type explained struct {
	*policy.Explanation
	// Files are file:line of each policy and rule that is named, as
	// "namespace/name" or "namespace/name ingress[0]".
	Files map[string]string `json:"files,omitempty"`
	// OtherPolicies are policies of other kinds that select an end, or may:
	// they are not judged.
	OtherPolicies []string `json:"other_policies,omitempty"`
}

func (o *policyExplain) show(j *judged, x *policy.Explanation, others []string) error {
	files := make(map[string]string)
	var order []string
	for _, r := range named(x) {
		name := r.Namespace + "/" + r.Name
		if r.Rule != "" {
			name += " " + r.Rule
		}
		if at := j.where(r); at != "" && files[name] == "" {
			files[name] = at
			order = append(order, name)
		}
	}
	if o.output == "json" {
		e := json.NewEncoder(o.env.stdout)
		e.SetIndent("", "  ")
		return e.Encode(explained{x, files, others})
	}
	if _, err := fmt.Fprint(o.env.stdout, x); err != nil {
		return err
	}
	if len(others) > 0 {
		fmt.Fprintln(o.env.stdout, "\nnot judged, and may decide otherwise")
	}
	for _, text := range others {
		fmt.Fprintf(o.env.stdout, "  %s\n", text)
	}
	if len(order) > 0 {
		fmt.Fprintln(o.env.stdout, "\nwritten in")
	}
	for _, name := range order {
		fmt.Fprintf(o.env.stdout, "  %s  %s\n", files[name], name)
	}
	return nil
}

// named lists the policies and rules that an explanation speaks of.
func named(x *policy.Explanation) []flow.PolicyRef {
	var out []flow.PolicyRef
	for _, s := range []*policy.SideExplanation{&x.Egress, &x.Ingress} {
		out = slices.Concat(out, s.By, s.Allowed)
		if s.Nearest != nil {
			out = append(out, s.Nearest.Rule)
		}
	}
	return out
}
