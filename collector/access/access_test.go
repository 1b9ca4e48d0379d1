package access

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// shows is the context of a call with a token.
func shows(ctx context.Context, header string) context.Context {
	return metadata.NewIncomingContext(ctx, metadata.Pairs("authorization", header))
}

// server is an API server: users by their tokens, and what each may.
type server struct {
	mu       sync.Mutex
	users    map[string]string // by token
	api      map[string]bool   // tokens that are for the API server, not for the audience
	may      map[string]bool   // "user verb namespace"
	err      error
	reviews  int
	asked    []string
	audience []string
}

type reviewer struct{ *server }

func (s reviewer) Create(_ context.Context, r *authenticationv1.TokenReview, _ metav1.CreateOptions) (*authenticationv1.TokenReview, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reviews++
	if s.err != nil {
		return nil, s.err
	}
	out := &authenticationv1.TokenReview{}
	user, known := s.users[r.Spec.Token]
	if !known || s.api[r.Spec.Token] != (len(r.Spec.Audiences) == 0) {
		out.Status.Error = "token " + r.Spec.Token + " is bad"
		return out, nil
	}
	out.Status = authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: s.audience, User: authenticationv1.UserInfo{
		Username: user, UID: "u", Groups: []string{"g"}, Extra: map[string]authenticationv1.ExtraValue{"k": {"v"}},
	}}
	return out, nil
}

type authorizer struct{ *server }

func (s authorizer) Create(_ context.Context, r *authorizationv1.SubjectAccessReview, _ metav1.CreateOptions) (*authorizationv1.SubjectAccessReview, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := r.Spec.ResourceAttributes
	what := r.Spec.User + " " + a.Verb + " " + a.Namespace
	s.asked = append(s.asked, what)
	if s.err != nil {
		return nil, s.err
	}
	r.Status.Allowed = s.may[what]
	return r, nil
}

func TestTokens(t *testing.T) {
	api := &server{users: map[string]string{"ours": "alice", "plain": "bob"}, api: map[string]bool{"plain": true}, audience: []string{"us", "more"}}
	for name, c := range map[string]struct {
		header    string
		apiTokens bool
		want      string
		err       error
	}{
		"ours":                      {"Bearer ours", false, "alice", nil},
		"in small letters":          {"bearer ours", false, "alice", nil},
		"the API server's":          {"Bearer plain", true, "bob", nil},
		"the API server's, refused": {"Bearer plain", false, "", errNotValid},
		"unknown":                   {"Bearer x", true, "", errNotValid},
		"a password":                {"Basic eDp5", true, "", errNothingShown},
		"empty":                     {"Bearer ", true, "", errNothingShown},
	} {
		r, err := NewTokens(reviewer{api}, "us", c.apiTokens).Prove(shows(t.Context(), c.header))
		if r.Name != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %q, %v", name, r.Name, err)
		}
		if err != nil && strings.Contains(err.Error(), "is bad") {
			t.Errorf("%s: the error tells the token: %v", name, err)
		}
	}
	api.audience = nil
	if _, err := NewTokens(reviewer{api}, "us", false).Prove(shows(t.Context(), "Bearer ours")); !errors.Is(err, errNotValid) {
		t.Errorf("a server that knows no audiences: %v", err)
	}
	if _, err := NewTokens(reviewer{api}, "us", false).Prove(t.Context()); !errors.Is(err, errNothingShown) {
		t.Errorf("nothing shown: %v", err)
	}
}

// TestADecisionIsBelievedForTenSeconds: allowed or not, and nothing that could
// not be found out.
func TestADecisionIsBelievedForTenSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &server{users: map[string]string{"ours": "alice"}, audience: []string{"us"}, err: errors.New("away")}
		tokens := NewTokens(reviewer{api}, "us", false)
		ours, bad := shows(t.Context(), "Bearer ours"), shows(t.Context(), "Bearer bad")
		if _, err := tokens.Prove(ours); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
		api.err = nil
		for _, c := range []struct {
			ctx     context.Context
			reviews int
		}{{ours, 2}, {ours, 2}, {bad, 3}, {bad, 3}} {
			if _, err := tokens.Prove(c.ctx); api.reviews != c.reviews || (err != nil) != (c.ctx == bad) {
				t.Errorf("%d reviews, %v, want %d", api.reviews, err, c.reviews)
			}
		}
		delete(api.users, "ours")
		time.Sleep(remembered - time.Second)
		if _, err := tokens.Prove(ours); err != nil {
			t.Errorf("before: %v", err)
		}
		time.Sleep(2 * time.Second)
		if _, err := tokens.Prove(ours); !errors.Is(err, errNotValid) {
			t.Errorf("after: %v", err)
		}

		rights := NewRights(RightsOptions{Authorizer: authorizer{api}, Namespaces: func() ([]string, error) { return []string{"shop"}, nil }, Read: Right{Verb: "get"}, Write: Right{Verb: "update"}})
		alice := &Reader{Name: "alice"}
		api.may = map[string]bool{"alice get shop": true, "alice update shop": true}
		see := func() string {
			s, err := rights.Sight(t.Context(), alice)
			return strings.Join(s.Namespaces(), " ") + errorText(err)
		}
		may := func() bool { ok, _ := rights.MayWrite(t.Context(), alice, "shop"); return ok }
		if see() != "shop" || !may() {
			t.Error("not allowed")
		}
		clear(api.may)
		if see() != "shop" || !may() {
			t.Error("not remembered")
		}
		time.Sleep(remembered + time.Second)
		if see() != "" || may() {
			t.Error("remembered for too long")
		}
	})
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestCertificates(t *testing.T) {
	with := func(subject pkix.Name) context.Context {
		c := &x509.Certificate{Subject: subject}
		return peer.NewContext(t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{PeerCertificates: []*x509.Certificate{c}, VerifiedChains: [][]*x509.Certificate{{c}}}}})
	}
	r, err := Certificates{}.Prove(with(pkix.Name{CommonName: "alice", Organization: []string{"ops"}}))
	if err != nil || r.Name != "alice" || !slices.Equal(r.Groups, []string{"ops", "system:authenticated"}) {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := (Certificates{}).Prove(with(pkix.Name{})); err == nil || errors.Is(err, errNothingShown) {
		t.Errorf("without a name: %v", err)
	}
	unverified := peer.NewContext(t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{PeerCertificates: []*x509.Certificate{{Subject: pkix.Name{CommonName: "alice"}}}}}})
	for _, ctx := range []context.Context{t.Context(), unverified} {
		if _, err := (Certificates{}).Prove(ctx); !errors.Is(err, errNothingShown) {
			t.Errorf("nothing that was verified: %v", err)
		}
	}
}

func TestParseRight(t *testing.T) {
	for text, want := range map[string]Right{
		"get pods/log": {Verb: "get", Resource: "pods", Subresource: "log"},
		"update networkpolicies.networking.k8s.io": {Verb: "update", Resource: "networkpolicies", Group: "networking.k8s.io"},
		"get flows.flowaudit.io/labels":            {Verb: "get", Resource: "flows", Group: "flowaudit.io", Subresource: "labels"},
	} {
		got, err := ParseRight(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("%s: %+v, %v, %s", text, got, err, got)
		}
	}
	for _, text := range []string{"", "get", "get pods log", "get /log", "get pods/log/x"} {
		if r, err := ParseRight(text); err == nil {
			t.Errorf("%q: %+v", text, r)
		}
	}
}

func TestReadersAreToldApart(t *testing.T) {
	all := []Reader{
		{Name: "a"},
		{Name: "a", UID: "b"},
		{UID: "ab"},
		{Name: "a", Groups: []string{"b"}},
		{Name: "a", Groups: []string{"b", ""}},
		{Name: "a", Groups: []string{"", "b"}},
		{Name: "a", Extra: map[string][]string{"b": nil}},
		{Name: "a", Extra: map[string][]string{"b": {"c"}}},
	}
	for i := range all {
		for j := range all {
			if (all[i].key() == all[j].key()) != (i == j) {
				t.Errorf("%+v and %+v", all[i], all[j])
			}
		}
	}
}

func TestRights(t *testing.T) {
	api := &server{may: map[string]bool{
		"admin get ": true, "admin update ": true, "dev get shop": true, "dev get bank": true, "dev update shop": true, "writer get shop": true, "writer update ": true,
	}}
	rights := NewRights(RightsOptions{
		Authorizer: authorizer{api}, Cluster: "c", Namespaces: func() ([]string, error) { return []string{"shop", "bank", "secret"}, nil }, Read: Right{Verb: "get"}, Write: Right{Verb: "update"},
	})
	for name, want := range map[string]flow.Sight{"admin": flow.SeeAll(), "dev": flow.SeeNamespaces("c", "shop", "bank"), "nobody": flow.SeeNamespaces("c")} {
		if got, err := rights.Sight(t.Context(), &Reader{Name: name}); err != nil || !got.Equal(want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for what, want := range map[string]bool{"admin": true, "admin shop": true, "dev": false, "dev shop": true, "dev shop bank": false, "dev bank": false, "writer": true, "writer bank secret": true} {
		words := strings.Fields(what)
		if got, err := rights.MayWrite(t.Context(), &Reader{Name: words[0]}, words[1:]...); err != nil || got != want {
			t.Errorf("%s: %t, %v", what, got, err)
		}
	}
	api.err = errors.New("away")
	if _, err := rights.Sight(t.Context(), &Reader{Name: "new"}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("API server away: %v", err)
	}
}

// TestNobodyIsLetInWhereNobodyCanDecide: and why not is for the collector's log.
func TestNobodyIsLetInWhereNobodyCanDecide(t *testing.T) {
	api := &server{users: map[string]string{"t": "dev"}, audience: []string{"us"}, err: errors.New("dial tcp 10.96.0.1:443: refused")}
	var log bytes.Buffer
	g := gateOf(api, &log)
	for _, prepare := range []func(){func() {}, func() { api.err = nil; g.Rights.Namespaces = func() ([]string, error) { return nil, ErrStarting } }} {
		prepare()
		_, err := g.admit(shows(t.Context(), "Bearer t"), "/s/Sight")
		if status.Code(err) != codes.FailedPrecondition || strings.Contains(err.Error(), "10.96") {
			t.Errorf("%v", err)
		}
	}
}

// gateOf asks an API server, and writes its log to a buffer.
func gateOf(api *server, log *bytes.Buffer) *Gate {
	return &Gate{
		Needs: map[string]Need{"/s/Proof": NeedProof, "/s/Sight": NeedSight, "/s/All": NeedAll, "/s/Write": NeedWrite}, Provers: []Prover{NewTokens(reviewer{api}, "us", false)},
		Rights: NewRights(RightsOptions{
			Authorizer: authorizer{api}, Cluster: "c", Namespaces: func() ([]string, error) { return []string{"shop", "bank"}, nil },
			Read: Right{Verb: "get", Resource: "pods", Subresource: "log"}, Write: Right{Verb: "update", Resource: "networkpolicies"},
		}),
		Log: NewLog(log, func(any) uint64 { return 3 }), Hint: "show a token",
	}
}

func TestGate(t *testing.T) {
	api := &server{
		users: map[string]string{"t-admin": "admin", "t-chief": "chief", "t-dev": "dev", "t-none": "nobody"}, audience: []string{"us"},
		may: map[string]bool{"admin get ": true, "chief get ": true, "chief update ": true, "dev get shop": true},
	}
	var log bytes.Buffer
	g := gateOf(api, &log)
	const ok, unknown, refused = codes.OK, codes.Unauthenticated, codes.PermissionDenied
	for reader, want := range map[string]map[string]codes.Code{
		"":        {"Proof": unknown, "Sight": unknown, "All": unknown, "Write": unknown, "New": unknown},
		"t-x":     {"Proof": unknown, "Sight": unknown, "All": unknown, "Write": unknown, "New": unknown},
		"t-none":  {"Proof": ok, "Sight": refused, "All": refused, "Write": refused, "New": refused},
		"t-dev":   {"Proof": ok, "Sight": ok, "All": refused, "Write": refused, "New": refused},
		"t-admin": {"Proof": ok, "Sight": ok, "All": ok, "Write": refused, "New": refused},
		"t-chief": {"Proof": ok, "Sight": ok, "All": ok, "Write": ok, "New": refused},
	} {
		for method, code := range want {
			sight := flow.Sight{}
			called := false
			_, err := g.Unary(shows(t.Context(), "Bearer "+reader), &flowauditv1.RunRequest{Name: "nodes"}, &grpc.UnaryServerInfo{FullMethod: "/s/" + method}, func(ctx context.Context, _ any) (any, error) {
				called, sight = true, SightOf(ctx)
				return &flowauditv1.ListResponse{}, nil
			})
			if status.Code(err) != code || called != (code == ok) {
				t.Errorf("%q %s: %v, called %t", reader, method, err, called)
			}
			if reader == "t-dev" && called && !sight.Equal(flow.SeeNamespaces("c", "shop")) {
				t.Errorf("sees %v", sight.Namespaces())
			}
			if err != nil && strings.Contains(err.Error(), "bank") {
				t.Errorf("%q %s: %v tells a namespace", reader, method, err)
			}
		}
	}
	if text := log.String(); strings.Contains(text, "t-") || !strings.Contains(text, `"name":"nodes"`) || strings.Count(text, "\n") != 30 {
		t.Errorf("the log: %s", text)
	}
	if !SightOf(t.Context()).Nothing() {
		t.Error("who was not let in sees something")
	}
}

// stream is a call of one message.
type stream struct {
	grpc.ServerStream
	ctx  context.Context
	sent int
}

func (s *stream) Context() context.Context { return s.ctx }
func (s *stream) SendMsg(any) error        { s.sent++; return nil }
func (s *stream) RecvMsg(m any) error {
	r := m.(*flowauditv1.ObserveRequest)
	r.First, r.Follow = 5, true
	return nil
}

// TestTheLogOfQueries: who asked what, how it was decided, and how much was told.
func TestTheLogOfQueries(t *testing.T) {
	api := &server{users: map[string]string{"t-dev": "dev", "t-none": "nobody"}, audience: []string{"us"}, may: map[string]bool{"dev get shop": true}}
	for token, want := range map[string]string{
		"t-dev":  `dev token namespaces ["shop"] 6 OK {"first":"5","follow":true}`,
		"t-none": `nobody token nothing null 0 PermissionDenied {"first":"5","follow":true}`,
		"t-x":    `  unknown reader null 0 Unauthenticated `,
	} {
		var log bytes.Buffer
		g := gateOf(api, &log)
		s := &stream{ctx: peer.NewContext(shows(t.Context(), "Bearer "+token), &peer.Peer{})}
		err := g.Stream(nil, s, &grpc.StreamServerInfo{FullMethod: "/s/Sight"}, func(_ any, s grpc.ServerStream) error {
			if err := s.RecvMsg(&flowauditv1.ObserveRequest{}); err != nil {
				return err
			}
			return errors.Join(s.SendMsg(nil), s.SendMsg(&flowauditv1.ObserveResponse{}), s.SendMsg(&flowauditv1.ObserveResponse{}))
		})
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		if n := 1; token == "t-dev" && len(lines) != 2 || token != "t-dev" && len(lines) != n {
			t.Errorf("%s: %v, lines %q", token, err, lines)
		}
		var said struct {
			Reader, Proof, Decision, Code string
			Namespaces, Arguments         json.RawMessage
			Rows                          int
		}
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &said); err != nil {
			t.Fatal(err)
		}
		namespaces := "null"
		if said.Namespaces != nil {
			namespaces = string(said.Namespaces)
		}
		got := strings.Join([]string{said.Reader, said.Proof, said.Decision, namespaces, map[int]string{0: "0", 6: "6"}[said.Rows], said.Code, strings.ReplaceAll(string(said.Arguments), ", ", ",")}, " ")
		if strings.ReplaceAll(got, " ", "") != strings.ReplaceAll(want, " ", "") {
			t.Errorf("%s:\n%s, want\n%s", token, got, want)
		}
		if strings.Contains(log.String(), token) {
			t.Errorf("the log tells the token: %s", log.String())
		}
	}
}

// TestWhatIsSeenIsRenewed: who follows loses what they may not see any more.
func TestWhatIsSeenIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &server{users: map[string]string{"t": "dev"}, audience: []string{"us"}, may: map[string]bool{"dev get shop": true, "dev get bank": true}}
		g := gateOf(api, &bytes.Buffer{})
		ctx, err := g.admit(shows(t.Context(), "Bearer t"), "/s/Sight")
		if err != nil {
			t.Fatal(err)
		}
		delete(api.may, "dev get bank")
		time.Sleep(remembered + time.Second)
		if s, err := Renew(ctx); err != nil || !s.Equal(flow.SeeNamespaces("c", "shop")) {
			t.Errorf("%v, %v", s.Namespaces(), err)
		}
		delete(api.may, "dev get shop")
		time.Sleep(remembered + time.Second)
		if _, err := Renew(ctx); status.Code(err) != codes.PermissionDenied {
			t.Errorf("without any right: %v", err)
		}
		delete(api.users, "t")
		time.Sleep(remembered + time.Second)
		if _, err := Renew(ctx); status.Code(err) != codes.Unauthenticated {
			t.Errorf("with a token that is over: %v", err)
		}
	})
}

// full is a disk that is.
type full struct{ err error }

func (f *full) Write(b []byte) (int, error) { return len(b), f.err }

func TestALogThatCannotBeWritten(t *testing.T) {
	disk := &full{errors.New("no space left on device")}
	l := NewLog(disk, nil)
	l.ended(t.Context(), "/s/X", nil, time.Now(), 0, nil)
	if !strings.Contains(l.Problem(), "no space left") {
		t.Errorf("problem %q", l.Problem())
	}
	disk.err = nil
	l.ended(t.Context(), "/s/X", nil, time.Now(), 0, nil)
	if l.Problem() != "" || (*Log)(nil).Problem() != "" {
		t.Errorf("problem %q", l.Problem())
	}
}
