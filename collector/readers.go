package collector

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	authenticationclient "k8s.io/client-go/kubernetes/typed/authentication/v1"
	authorizationclient "k8s.io/client-go/kubernetes/typed/authorization/v1"

	"github.com/flowaudit/flowaudit/collector/access"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// ProofOIDC is an ID token of an issuer, for readers only.
const ProofOIDC Proof = "oidc"

// ReaderOptions say how readers prove who they are, and what that takes them to.
type ReaderOptions struct {
	// Proofs of which one is enough; empty means auto.
	Proofs []Proof
	// Audience is what readers' tokens must be for; with APITokens those for the
	// API server itself do as well.
	Audience  string
	APITokens bool
	OIDC      access.OIDCOptions
	// Read is what allows to read a namespace's flows, Write to acknowledge and
	// silence its alerts, as kubectl auth can-i names it; empty takes the defaults.
	Read, Write string
	// Log is the file of who asked what; "-" is standard output, empty for none.
	Log string
}

// Defaults of ReaderOptions.
const (
	DefaultReaderAudience = "flowaudit-reader"
	DefaultRead           = "get pods/log"
	DefaultWrite          = "update networkpolicies.networking.k8s.io"
)

// readerProofs are those that hold: without a word about it, whatever the
// collector can ask for. They are empty where it can ask for nothing.
func (o *Options) readerProofs() []Proof {
	p := o.Readers.Proofs
	if len(p) > 0 && !slices.Equal(p, []Proof{ProofAuto}) {
		return p
	}
	var out []Proof
	if o.Listen.ClientCA != "" {
		out = append(out, ProofCertificate)
	}
	if o.Listen.Cert != "" && o.Access.Wanted() {
		out = append(out, ProofToken)
	}
	if o.Listen.Cert != "" && o.Readers.OIDC.Issuer != "" {
		out = append(out, ProofOIDC)
	}
	// Who opens a unix socket has its owner's rights.
	if len(out) == 0 && strings.HasPrefix(o.Listen.Address, "unix:") && o.Listen.HTTP == "" {
		return []Proof{ProofNone}
	}
	return out
}

func (o *Options) validateReaders() error {
	known := []Proof{ProofAuto, ProofNone, ProofCertificate, ProofToken, ProofOIDC}
	for _, p := range o.Readers.Proofs {
		switch {
		case !slices.Contains(known, p):
			return fmt.Errorf("--reader-proof %q: want auto, none, certificate, token or oidc", p)
		case len(o.Readers.Proofs) > 1 && (p == ProofAuto || p == ProofNone):
			return fmt.Errorf("--reader-proof %s goes with no other", p)
		case p == ProofCertificate && o.Listen.ClientCA == "":
			return errors.New("--reader-proof certificate needs --tls-client-ca, whose certificates readers must show")
		case p == ProofToken && !o.Access.Wanted():
			return errors.New("--reader-proof token needs an API server that knows the tokens: give --in-cluster or --kubeconfig")
		case (p == ProofToken || p == ProofOIDC) && o.Listen.Cert == "" && !o.Listen.allLocal():
			return fmt.Errorf("--reader-proof %s needs --tls-cert and --tls-key: in the clear anybody on the way could take the token", p)
		}
	}
	if slices.Contains(o.readerProofs(), ProofOIDC) {
		if err := o.Readers.OIDC.Validate(); err != nil {
			return err
		}
	}
	for flag, right := range map[string]string{"--reader-right": o.Readers.Read, "--alert-right": o.Readers.Write} {
		if _, err := access.ParseRight(right); right != "" && err != nil {
			return fmt.Errorf("%s: %w", flag, err)
		}
	}
	return nil
}

// provable names, for those who may set it up, how readers could prove themselves.
const provable = "the collector lets nobody read: it has neither --tls-client-ca, nor TLS with an API server or --oidc-issuer, which say who asks; " +
	"--reader-proof none lets whoever reaches it read everything"

// gate is what readers pass.
func (o *Options) gate(namespaces func() ([]string, error)) (*access.Gate, error) {
	proofs := o.readerProofs()
	g := &access.Gate{Needs: needs(), Open: slices.Contains(proofs, ProofNone), Hint: hint(proofs)}
	var err error
	if o.Readers.Log != "" {
		if g.Log, err = access.OpenLog(o.Readers.Log, rowsOf); err != nil {
			return nil, err
		}
	}
	if g.Open {
		return g, nil
	}
	if len(proofs) == 0 {
		o.Log.Warn(provable)
	}
	if o.Access.Wanted() {
		if err := o.askAPI(g, namespaces, slices.Contains(proofs, ProofToken)); err != nil {
			return nil, err
		}
	}
	for _, p := range proofs {
		switch p {
		case ProofCertificate:
			g.Provers = append(g.Provers, access.Certificates{})
		case ProofOIDC:
			issuer, err := access.NewOIDC(o.Readers.OIDC)
			if err != nil {
				return nil, err
			}
			// Its tokens are known by their issuer: the API server need not see them.
			g.Provers = append([]access.Prover{issuer}, g.Provers...)
		}
	}
	return g, nil
}

// askAPI makes the API server say what readers may, and who shows a token.
func (o *Options) askAPI(g *access.Gate, namespaces func() ([]string, error), tokens bool) error {
	config, err := o.Access.Config("flowaudit-collector/" + o.Version)
	if err != nil {
		return err
	}
	read, err := rightOf(o.Readers.Read, DefaultRead)
	if err != nil {
		return err
	}
	write, err := rightOf(o.Readers.Write, DefaultWrite)
	if err != nil {
		return err
	}
	authorization, err := authorizationclient.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("prepare to ask what readers may: %w", err)
	}
	g.Rights = access.NewRights(access.RightsOptions{
		Authorizer: authorization.SubjectAccessReviews(), Cluster: o.Cluster, Namespaces: namespaces, Read: read, Write: write,
	})
	if !tokens {
		return nil
	}
	authentication, err := authenticationclient.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("prepare to ask whose a token is: %w", err)
	}
	audience := o.Readers.Audience
	if audience == "" {
		audience = DefaultReaderAudience
	}
	g.Provers = append(g.Provers, access.NewTokens(authentication.TokenReviews(), audience, o.Readers.APITokens))
	return nil
}

func rightOf(text, usual string) (access.Right, error) {
	if text == "" {
		text = usual
	}
	return access.ParseRight(text)
}

// hint says to who asks what to show.
func hint(proofs []Proof) string {
	var ways []string
	for _, p := range proofs {
		switch p {
		case ProofCertificate:
			ways = append(ways, "a client's certificate (--tls-cert and --tls-key)")
		case ProofToken:
			ways = append(ways, "a Kubernetes token (by a kubeconfig, or --token-file)")
		case ProofOIDC:
			ways = append(ways, "the issuer's ID token (--token-file)")
		}
	}
	if len(ways) == 0 {
		return "this collector lets nobody read: it was not told how readers prove who they are (its --reader-proof)"
	}
	return "show who asks, by " + strings.Join(ways, " or ")
}

// needs are those of the methods that readers call. What flows or objects they
// tell of decides; one that is not here is refused. Whoever adds a method says
// here what it needs.
func needs() map[string]access.Need {
	return map[string]access.Need{
		flowauditv1.Query_List_FullMethodName:     access.NeedProof,
		flowauditv1.Query_Observe_FullMethodName:  access.NeedSight,
		flowauditv1.Query_Run_FullMethodName:      access.NeedSight,
		flowauditv1.Query_Timeline_FullMethodName: access.NeedSight,
		flowauditv1.Query_Select_FullMethodName:   access.NeedAll,
		flowauditv1.Query_Status_FullMethodName:   access.NeedAll,
		flowauditv1.Query_Objects_FullMethodName:  access.NeedAll,

		// They judge by labels of both ends, as who asks for edges does.
		flowauditv1.Query_Edges_FullMethodName:    access.NeedAll,
		flowauditv1.Advice_Suggest_FullMethodName: access.NeedAll,
		flowauditv1.Advice_Replay_FullMethodName:  access.NeedAll,
		flowauditv1.Advice_Unused_FullMethodName:  access.NeedAll,

		flowauditv1.Evidence_Export_FullMethodName: access.NeedAll, // its records cannot be shortened: their hashes prove them

		flowauditv1.Alerts_ListAlerts_FullMethodName:   access.NeedSight,
		flowauditv1.Alerts_Acknowledge_FullMethodName:  access.NeedSight, // and the right to change it
		flowauditv1.Alerts_ListSilences_FullMethodName: access.NeedAll,
		flowauditv1.Alerts_Silence_FullMethodName:      access.NeedWrite,
		flowauditv1.Alerts_TestRules_FullMethodName:    access.NeedAll, // rules match by names and labels of both ends
	}
}

// rowsOf says how much a message of an answer tells, for the log of queries.
func rowsOf(answer any) uint64 {
	switch m := answer.(type) {
	case *flowauditv1.ObserveResponse:
		return uint64(len(m.GetFlows().GetProtocol()))
	case *flowauditv1.RunResponse:
		return uint64(len(m.GetRows()))
	case *flowauditv1.EdgesResponse:
		return uint64(len(m.GetEdges()))
	case *flowauditv1.TimelineResponse:
		return uint64(len(m.GetChanges()))
	case *flowauditv1.ObjectsResponse:
		return uint64(len(m.GetObjects()))
	case *flowauditv1.AdviceResponse:
		if m.GetPolicy() != nil || m.GetReport() != nil {
			return 1
		}
	case *flowauditv1.ListAlertsResponse:
		return uint64(len(m.GetAlerts()))
	case *flowauditv1.ListSilencesResponse:
		return uint64(len(m.GetSilences()))
	case *flowauditv1.TestRulesResponse:
		return uint64(len(m.GetAlerts()))
	case *flowauditv1.ListResponse:
		return uint64(len(m.GetQuestions()))
	case *flowauditv1.StatusResponse, *flowauditv1.ExportResponse, *flowauditv1.AcknowledgeResponse, *flowauditv1.SilenceResponse:
		return 1
	}
	return 0
}

// namespaces are those of the cluster, once they are known.
func (c *collector) namespaces() ([]string, error) {
	select {
	case <-c.ready:
		return c.index.NamespaceNames(), nil
	default:
		return nil, access.ErrStarting
	}
}
