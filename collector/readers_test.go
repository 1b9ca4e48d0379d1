package collector

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/collector/access"
	"github.com/flowaudit/flowaudit/collector/rest"
	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/collector/store/duckdb"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/kube"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
	"github.com/flowaudit/flowaudit/queries"
)

func TestReaderOptions(t *testing.T) {
	tls := ListenOptions{Address: ":4245", Cert: "c", Key: "k"}
	mutual, local, socket, both := tls, ListenOptions{Address: "127.0.0.1:1"}, ListenOptions{Address: "unix:x"}, ListenOptions{Address: "unix:x", HTTP: "127.0.0.1:2"}
	mutual.ClientCA = "a"
	cluster := kube.Access{InCluster: true}
	oidc := access.OIDCOptions{Issuer: "https://i", ClientID: "c", UsernameClaim: "sub"}
	for name, c := range map[string]struct {
		options Options
		want    []Proof // that hold
		err     string
	}{
		"on this machine":                     {Options{Listen: local}, nil, ""},
		"on this machine, with a cluster":     {Options{Listen: local, Access: cluster}, nil, ""},
		"on this machine, for everybody":      {Options{Listen: local, Readers: ReaderOptions{Proofs: []Proof{ProofNone}}}, []Proof{ProofNone}, ""},
		"on a socket":                         {Options{Listen: socket}, []Proof{ProofNone}, ""},
		"on a socket, and HTTP":               {Options{Listen: both}, nil, ""},
		"beyond, in the clear":                {Options{Listen: ListenOptions{Address: ":1", Insecure: true}}, nil, ""},
		"mutual TLS":                          {Options{Listen: mutual}, []Proof{ProofCertificate}, ""},
		"mutual TLS in a cluster":             {Options{Listen: mutual, Access: cluster}, []Proof{ProofCertificate, ProofToken}, ""},
		"TLS in a cluster, with an issuer":    {Options{Listen: tls, Access: cluster, Readers: ReaderOptions{OIDC: oidc}}, []Proof{ProofToken, ProofOIDC}, ""},
		"TLS elsewhere":                       {Options{Listen: tls}, nil, ""},
		"said so":                             {Options{Listen: mutual, Access: cluster, Readers: ReaderOptions{Proofs: []Proof{ProofToken}}}, []Proof{ProofToken}, ""},
		"tokens on this machine":              {Options{Listen: local, Access: cluster, Readers: ReaderOptions{Proofs: []Proof{ProofToken}}}, []Proof{ProofToken}, ""},
		"unknown":                             {Options{Listen: local, Readers: ReaderOptions{Proofs: []Proof{"password"}}}, nil, `--reader-proof "password"`},
		"none and another":                    {Options{Listen: mutual, Readers: ReaderOptions{Proofs: []Proof{ProofNone, ProofCertificate}}}, nil, "goes with no other"},
		"certificates, no authority":          {Options{Listen: tls, Readers: ReaderOptions{Proofs: []Proof{ProofCertificate}}}, nil, "needs --tls-client-ca"},
		"tokens, no API server":               {Options{Listen: tls, Readers: ReaderOptions{Proofs: []Proof{ProofToken}}}, nil, "needs an API server"},
		"tokens in the clear":                 {Options{Listen: ListenOptions{Address: ":1", Insecure: true}, Access: cluster, Readers: ReaderOptions{Proofs: []Proof{ProofToken}}}, nil, "in the clear"},
		"tokens in the clear, over HTTP":      {Options{Listen: ListenOptions{Address: "127.0.0.1:1", HTTP: ":2", Insecure: true}, Access: cluster, Readers: ReaderOptions{Proofs: []Proof{ProofToken}}}, nil, "in the clear"},
		"an issuer without a name":            {Options{Listen: tls, Readers: ReaderOptions{Proofs: []Proof{ProofOIDC}}}, nil, "--oidc-issuer"},
		"a right that is none":                {Options{Listen: local, Readers: ReaderOptions{Read: "pods"}}, nil, "--reader-right"},
		"a right to change, which is not one": {Options{Listen: local, Readers: ReaderOptions{Write: "update a b"}}, nil, "--alert-right"},
	} {
		err := c.options.Validate()
		if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %v, want %q", name, err, c.err)
		}
		if got := c.options.readerProofs(); c.err == "" && !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// TestEveryMethodSaysWhatItNeeds: whoever adds a service or a method decides
// who may call it.
func TestEveryMethodSaysWhatItNeeds(t *testing.T) {
	c, err := newCollector(Options{Log: slog.New(slog.DiscardHandler), Store: &memory{}, Alerts: AlertOptions{Queue: t.TempDir()}}, &authenticator{})
	if err != nil {
		t.Fatal(err)
	}
	missing := needs()
	for name, service := range c.server(insecure.NewCredentials()).GetServiceInfo() {
		for _, m := range service.Methods {
			full := "/" + name + "/" + m.Name
			if reports(full) {
				continue
			}
			if needs()[full] == access.NeedUnknown {
				t.Errorf("%s has no need", full)
			}
			delete(missing, full)
		}
	}
	for m := range missing {
		t.Errorf("%s is no method", m)
	}
}

// byName proves readers by the names that they give as tokens.
type byName struct{}

func (byName) Prove(ctx context.Context) (access.Reader, error) {
	for _, v := range metadata.ValueFromIncomingContext(ctx, "authorization") {
		if name := strings.TrimPrefix(v, "Bearer "); name != "unknown" {
			return access.Reader{Name: name, Proof: "token"}, nil
		}
	}
	return access.Reader{}, errors.New("the token is not valid")
}

// granted says what readers may: "name verb namespace".
type granted map[string]bool

// rightsServer answers by what is granted.
type rightsServer struct {
	mu  sync.Mutex
	may granted
}

// revoke takes a right away.
func (s *rightsServer) revoke(right string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.may, right)
}

func (s *rightsServer) Create(_ context.Context, r *authorizationv1.SubjectAccessReview, _ metav1.CreateOptions) (*authorizationv1.SubjectAccessReview, error) {
	a := r.Spec.ResourceAttributes
	s.mu.Lock()
	defer s.mu.Unlock()
	r.Status.Allowed = s.may[r.Spec.User+" "+a.Verb+" "+a.Namespace]
	return r, nil
}

func guarded(may granted) *authenticator { return guardedBy(&rightsServer{may: may}) }

func guardedBy(rights *rightsServer) *authenticator {
	return &authenticator{proofs: []Proof{ProofNone}, readers: &access.Gate{
		Needs: needs(), Provers: []access.Prover{byName{}}, Hint: "show who asks",
		Rights: access.NewRights(access.RightsOptions{
			Authorizer: rights, Cluster: "c", Namespaces: func() ([]string, error) { return []string{"shop", "bank", "secret"}, nil },
			Read: access.Right{Verb: "get", Resource: "pods", Subresource: "log"}, Write: access.Right{Verb: "update", Resource: "networkpolicies"},
		}),
	}}
}

func as(ctx context.Context, reader string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+reader)
}

func matrixPod(namespace, name, node string) *flow.Endpoint {
	return &flow.Endpoint{
		Kind: flow.EndpointPod, Namespace: namespace, Pod: name + "-pod", Workload: flow.Workload{Kind: "Deployment", Name: name}, Node: node,
		Labels: map[string]string{"label-of": name}, Identity: 7,
	}
}

// matrixFlows are between every two namespaces, and with what is in none.
func matrixFlows() []flow.Flow {
	ends := []struct {
		ip string
		e  *flow.Endpoint
	}{{"10.1.0.1", matrixPod("shop", "web", "node-1")}, {"10.2.0.2", matrixPod("bank", "ledger", "node-2")}, {"10.3.0.3", matrixPod("secret", "vault", "node-3")}, {"203.0.113.9", &flow.Endpoint{Kind: flow.EndpointOutside}}}
	var out []flow.Flow
	for i, a := range ends {
		for j, b := range ends {
			f := flowTo(uint16(1000+10*i+j), flow.VerdictDenied)
			f.Src, f.Source, f.Dst, f.Destination = netip.MustParseAddr(a.ip), a.e, netip.MustParseAddr(b.ip), b.e
			f.Policies = []flow.PolicyRef{{Kind: "NetworkPolicy", Namespace: b.e.Namespace, Name: "policy-of-" + b.e.Namespace, Rule: "ingress[0]", Side: "ingress"}}
			out = append(out, f)
		}
	}
	return out
}

// secrets are what the answers to a reader of shop, or of bank, must not hold.
var secrets = map[string][]string{
	"dev":    {"ledger", "vault", "10.2.0.2", "10.3.0.3", "policy-of-bank", "policy-of-secret", "node-2", "node-3"},
	"banker": {"web-pod", "label-of\":\"web", "vault", "10.1.0.1", "10.3.0.3", "policy-of-shop", "policy-of-secret", "node-3"},
}

// wire calls any method of the collector, and gives the answer as JSON.
type wire interface {
	call(ctx context.Context, reader string, method protoreflect.MethodDescriptor, req proto.Message) (answer string, err error)
}

type overGRPC struct{ conn *grpc.ClientConn }

func (c overGRPC) call(ctx context.Context, reader string, m protoreflect.MethodDescriptor, req proto.Message) (string, error) {
	full := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
	stream, err := c.conn.NewStream(as(ctx, reader), &grpc.StreamDesc{ServerStreams: m.IsStreamingServer()}, full)
	if err != nil {
		return "", err
	}
	if err := errors.Join(stream.SendMsg(req), stream.CloseSend()); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	kind, err := protoregistry.GlobalTypes.FindMessageByName(m.Output().FullName())
	if err != nil {
		return "", err
	}
	var all strings.Builder
	for {
		answer := kind.New().Interface()
		if err := stream.RecvMsg(answer); errors.Is(err, io.EOF) {
			return all.String(), nil
		} else if err != nil {
			return all.String(), err
		}
		text, err := protojson.Marshal(answer)
		if err != nil {
			return "", err
		}
		all.WriteString(protojson.Format(answer) + string(text))
		if o, ok := answer.(*flowauditv1.ObserveResponse); ok { // addresses are bytes there
			flows, _, _, err := o.GetFlows().ToFlows()
			if err != nil {
				return "", err
			}
			for i := range flows {
				text, err := flows[i].MarshalJSON()
				if err != nil {
					return "", err
				}
				all.Write(text)
			}
		}
		if !m.IsStreamingServer() {
			return all.String(), nil
		}
	}
}

type overHTTP struct{ handler http.Handler }

func (c overHTTP) call(ctx context.Context, reader string, m protoreflect.MethodDescriptor, req proto.Message) (string, error) {
	body, err := protojson.Marshal(req)
	if err != nil {
		return "", err
	}
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/v1/"+strings.ToLower(string(m.Name())), strings.NewReader(string(body)))
	r.Header.Set("Authorization", "Bearer "+reader)
	w := httptest.NewRecorder()
	c.handler.ServeHTTP(w, r)
	if code, refused := map[int]codes.Code{http.StatusUnauthorized: codes.Unauthenticated, http.StatusForbidden: codes.PermissionDenied}[w.Code]; refused {
		return "", status.Error(code, w.Body.String())
	}
	if w.Code != http.StatusOK {
		return "", status.Error(codes.Unknown, w.Body.String())
	}
	return w.Body.String(), nil
}

// matrixRequests are what is asked of every method, also for what is withheld.
func matrixRequests(method protoreflect.MethodDescriptor) []proto.Message {
	filter := func(change func(*flow.Selector)) *flowauditv1.ObserveRequest {
		var f flow.Filter
		change(&f.Match)
		return &flowauditv1.ObserveRequest{Filter: flowauditv1.FromFilter(f)}
	}
	switch method.Name() {
	case "Observe":
		return []proto.Message{
			&flowauditv1.ObserveRequest{}, &flowauditv1.ObserveRequest{Last: 3}, &flowauditv1.ObserveRequest{First: 3},
			filter(func(s *flow.Selector) { s.Either.Namespaces = []string{"bank"} }),
			filter(func(s *flow.Selector) { s.Either.Namespaces = []string{"nowhere"} }),
		}
	case "Run":
		var out []proto.Message
		for _, q := range queries.All() {
			args := map[string]string{}
			for _, a := range q.Args {
				switch a.Name {
				case "workload":
					args["workload"], args["namespace"] = "ledger", "bank"
				case "address":
					args["address"] = "10.2.0.2"
				case "hosts", "ports":
					args[a.Name] = "1"
				}
			}
			out = append(out, &flowauditv1.RunRequest{Name: q.Name, Arguments: args})
		}
		return out
	case "Select":
		return []proto.Message{&flowauditv1.SelectRequest{Query: "SELECT * FROM flows"}}
	case "Acknowledge":
		return []proto.Message{&flowauditv1.AcknowledgeRequest{Id: "0"}}
	}
	kind, err := protoregistry.GlobalTypes.FindMessageByName(method.Input().FullName())
	if err != nil {
		panic(err)
	}
	return []proto.Message{kind.New().Interface()}
}

// TestMatrixOfReadersAndMethods: no answer and no error tells a reader what is
// withheld, over gRPC and over HTTP.
func TestMatrixOfReadersAndMethods(t *testing.T) {
	s, err := duckdb.Open(t.Context(), duckdb.Options{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	c := serveAdmitting(t, s, Options{}, guarded(granted{"admin get ": true, "admin update ": true, "dev get shop": true, "banker get bank": true}))
	defer c.close(t)
	c.keep(t, batchOf(1, matrixFlows()...))
	handler, err := rest.Handler(rest.Interceptors{Unary: c.admission.unary, Stream: c.admission.stream},
		rest.Service{Desc: &flowauditv1.Query_ServiceDesc, Implementation: c.collector.query()},
		rest.Service{Desc: &flowauditv1.Advice_ServiceDesc, Implementation: c.advice},
		rest.Service{Desc: &flowauditv1.Alerts_ServiceDesc, Implementation: c.alerts()},
		rest.Service{Desc: &flowauditv1.Evidence_ServiceDesc, Implementation: c.evidence()})
	if err != nil {
		t.Fatal(err)
	}
	told := make(map[string]int)
	for name, to := range map[string]wire{"gRPC": overGRPC{c.conn}, "HTTP": overHTTP{handler}} {
		for full, need := range needs() {
			d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(strings.TrimPrefix(full, "/"), "/", ".")))
			if err != nil {
				t.Fatal(err)
			}
			method := d.(protoreflect.MethodDescriptor)
			for _, req := range matrixRequests(method) {
				for _, reader := range []string{"admin", "dev", "banker", "nobody", "unknown"} {
					answer, err := to.call(t.Context(), reader, method, req)
					told[reader] += len(answer)
					if code := status.Code(err); code == codes.Unauthenticated != (reader == "unknown") {
						t.Errorf("%s %s of %s: %v", name, full, reader, err)
					}
					refused := reader != "unknown" && reader != "admin" && (need >= access.NeedAll || reader == "nobody" && need == access.NeedSight)
					if refused && status.Code(err) != codes.PermissionDenied || (refused || reader == "unknown") && answer != "" {
						t.Errorf("%s %s of %s: %v, answer %q", name, full, reader, err, answer)
					}
					if err != nil {
						answer += err.Error()
					}
					for _, secret := range secrets[reader] {
						if strings.Contains(answer, secret) && !strings.Contains(protojson.Format(req), secret) {
							t.Errorf("%s %s %v tells %s %q: %s", name, full, req, reader, secret, answer)
						}
					}
				}
			}
		}
	}
	if told["dev"] == 0 || told["banker"] == 0 || told["admin"] <= told["dev"] {
		t.Errorf("told: %v", told)
	}
}

// TestFollowersSeeWhatShows: and lose what they may not see any more.
func TestFollowersSeeWhatShows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rights := &rightsServer{may: granted{"dev get shop": true}}
		c := serveAdmitting(t, &memory{}, Options{}, guardedBy(rights))
		defer c.close(t)
		stream, err := c.query().Observe(as(t.Context(), "dev"), &flowauditv1.ObserveRequest{Follow: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil { // what is stored
			t.Fatal(err)
		}
		c.keep(t, batchOf(1, matrixFlows()...))
		answer, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		flows, _, _, err := answer.GetFlows().ToFlows()
		if err != nil || len(flows) != 7 {
			t.Errorf("flows to %v, %v", ports(flows), err)
		}
		for _, f := range flows {
			text, err := f.MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			for _, secret := range secrets["dev"] {
				if strings.Contains(string(text), secret) {
					t.Errorf("tells %q: %s", secret, text)
				}
			}
		}
		rights.revoke("dev get shop")
		time.Sleep(3 * renewInterval)
		if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("without the right: %v", err)
		}
	})
}

// TestAlertsShowAsFlowsDo: of an end in another namespace its namespace only,
// and nobody acknowledges what concerns others.
func TestAlertsShowAsFlowsDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := serveAdmitting(t, &memory{}, Options{}, guarded(granted{
			"dev get shop": true, "dev update shop": true, "both get shop": true, "both get bank": true, "both update shop": true, "both update bank": true, "admin get ": true,
		}))
		defer c.close(t)
		c.keep(t, batchOf(1, matrixFlows()...))
		time.Sleep(8 * time.Second)
		client := c.alertsClient()
		list := func(reader string, matchers ...string) []*flowauditv1.Alert {
			got, err := client.ListAlerts(as(t.Context(), reader), &flowauditv1.ListAlertsRequest{Matchers: matchers})
			if err != nil {
				t.Fatal(err)
			}
			return got.GetAlerts()
		}
		everything, shown := list("admin"), list("dev")
		if len(shown) == 0 || len(shown) >= len(everything) {
			t.Fatalf("%d of %d alerts show", len(shown), len(everything))
		}
		known := make(map[string]bool)
		for _, a := range everything {
			known[a.GetId()] = true
		}
		half := ""
		for _, a := range shown {
			text := protojson.Format(a)
			for _, secret := range secrets["dev"] {
				if strings.Contains(text, secret) {
					t.Errorf("tells %q: %s", secret, text)
				}
			}
			if from, to := a.GetFrom().GetNamespace(), a.GetTo().GetNamespace(); from == "shop" && to == "bank" {
				half = a.GetId()
				if known[a.GetId()] || a.GetExplanation() != "" || a.GetTo().GetKind() != "unknown" {
					t.Errorf("shows %s", text)
				}
			}
		}
		for _, m := range []string{"destination=bank/ledger", "destination_workload=ledger", "source=~.*vault.*"} {
			if got := list("dev", m); len(got) > 0 {
				t.Errorf("%s finds %v", m, got)
			}
		}
		if got := list("dev", "source_workload=web"); len(got) == 0 {
			t.Error("an own workload is not found")
		}
		acknowledge := func(reader, id string) error {
			_, err := client.Acknowledge(as(t.Context(), reader), &flowauditv1.AcknowledgeRequest{Id: id, By: "somebody else"})
			return err
		}
		if err := acknowledge("dev", half); status.Code(err) != codes.PermissionDenied {
			t.Errorf("acknowledges what concerns others: %v", err)
		}
		whole := ""
		for _, a := range list("both") {
			if a.GetFrom().GetNamespace() == "shop" && a.GetTo().GetNamespace() == "bank" {
				whole = a.GetId()
			}
		}
		if err := acknowledge("both", whole); err != nil || !known[whole] {
			t.Errorf("who may both: %v", err)
		}
		if by := list("both"); !slices.ContainsFunc(by, func(a *flowauditv1.Alert) bool { return a.GetAcknowledged().GetBy() == "both" }) {
			t.Error("who acknowledged is not who it was")
		}
		// An alert that does not show is one that is not there.
		var hidden error
		for _, a := range everything {
			if a.GetFrom().GetNamespace() == "secret" && a.GetTo().GetNamespace() == "bank" {
				hidden = acknowledge("dev", a.GetId())
			}
		}
		nowhere := acknowledge("dev", "ffff")
		if status.Code(hidden) != codes.NotFound || status.Code(nowhere) != codes.NotFound {
			t.Errorf("hidden: %v, nowhere: %v", hidden, nowhere)
		}
	})
}

var _ store.Store = (*memory)(nil)
