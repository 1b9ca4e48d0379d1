package cluster_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/proto/dial"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
	"github.com/flowaudit/flowaudit/test/cluster/product"
)

// identities are pods whose tokens agents show: one of flowaudit's agents, and
// one of an application.
const identities = `apiVersion: v1
kind: Pod
metadata: {name: agent-1, namespace: flowaudit, labels: {flowaudit.test/unmanaged: "true"}}
spec: {nodeName: node1, serviceAccountName: flowaudit-agent, containers: [{name: c, image: "test/c:1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: identity, labels: {flowaudit.test/unmanaged: "true"}}
spec: {nodeName: node1, containers: [{name: c, image: "test/c:1"}]}
`

// TestAgentsProveWhoTheyAre: by tokens of the real API server, each for its own
// node or pod only.
func TestAgentsProveWhoTheyAre(t *testing.T) {
	namespace(t, "identity")
	must(t, lab.Apply(t.Context(), identities))
	p, err := product.Start(t.Context(), lab.Cluster, product.Options{Bin: lab.bin, NoAgents: true, Arguments: []string{"--agent-proof", "token"}})
	must(t, err)
	defer func() { must(t, p.Close()) }()

	agent := token(t, "flowaudit", "flowaudit-agent", "agent-1", "flowaudit-collector")
	application := token(t, "identity", "default", "web", "flowaudit-collector")
	for name, c := range map[string]struct {
		token string
		node  string
		scope flow.Scope
		code  codes.Code
	}{
		"own node":                         {agent, "node1", flow.ScopeNode, codes.OK},
		"another node":                     {agent, "node2", flow.ScopeNode, codes.PermissionDenied},
		"a node's agent as a pod":          {agent, "flowaudit/agent-1", flow.ScopePod, codes.PermissionDenied},
		"own pod":                          {application, "identity/web", flow.ScopePod, codes.OK},
		"another pod":                      {application, "identity/db", flow.ScopePod, codes.PermissionDenied},
		"an application as a node's agent": {application, "node1", flow.ScopeNode, codes.PermissionDenied},
		"for the API server":               {token(t, "flowaudit", "flowaudit-agent", "agent-1", ""), "node1", flow.ScopeNode, codes.Unauthenticated},
		"bound to no pod":                  {token(t, "flowaudit", "flowaudit-agent", "", "flowaudit-collector"), "node1", flow.ScopeNode, codes.Unauthenticated},
		"changed":                          {agent[:len(agent)-4] + "AAAA", "node1", flow.ScopeNode, codes.Unauthenticated},
		"none":                             {"", "node1", flow.ScopeNode, codes.Unauthenticated},
	} {
		if err := report(t, p.Server, c.token, c.node, c.scope); status.Code(err) != c.code {
			t.Errorf("%s: %v, want %s", name, err, c.code)
		}
	}
	if _, err := lab.Kubectl(t.Context(), "", "-n", "flowaudit", "delete", "pod", "agent-1", "--grace-period=0", "--force"); err != nil {
		t.Fatal(err)
	}
	must(t, p.Until(t.Context(), answerBy, "the token of a pod that is gone to be refused", func() error {
		if err := report(t, p.Server, agent, "node1", flow.ScopeNode); status.Code(err) != codes.Unauthenticated {
			return errors.Join(errors.New("it is taken"), err)
		}
		return nil
	}))
}

// token is one of a ServiceAccount, bound to a pod and for an audience; "" is
// no pod, and the API server.
func token(t *testing.T, namespace, account, pod, audience string) string {
	t.Helper()
	var spec authenticationv1.TokenRequestSpec
	if audience != "" {
		spec.Audiences = []string{audience}
	}
	if pod != "" {
		object, err := lab.Client.CoreV1().Pods(namespace).Get(t.Context(), pod, metav1.GetOptions{})
		must(t, err)
		spec.BoundObjectRef = &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod, UID: object.UID}
	}
	answer, err := lab.Client.CoreV1().ServiceAccounts(namespace).CreateToken(t.Context(), account, &authenticationv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
	must(t, err)
	return answer.Status.Token
}

// report reports an empty batch, as an agent with a token does.
func report(t *testing.T, server, token, node string, scope flow.Scope) error {
	t.Helper()
	o := dial.Options{Address: server}
	if token != "" {
		o.TokenFile = filepath.Join(t.TempDir(), "token")
		must(t, os.WriteFile(o.TokenFile, []byte(token+"\n"), 0o600))
	}
	conn, err := o.Conn()
	must(t, err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), answerBy)
	defer cancel()
	return reportOn(ctx, conn, node, scope)
}

func reportOn(ctx context.Context, conn *grpc.ClientConn, node string, scope flow.Scope) error {
	stream, err := flowauditv1.NewIngestClient(conn).Report(ctx)
	if err != nil {
		return err
	}
	now := time.Now()
	batch := flow.Batch{
		Key:  flow.BatchKey{Cluster: "default", Instance: node, Epoch: uint64(now.UnixNano()), Sequence: 1},
		Node: node, Scope: scope, Start: now, End: now,
	}
	if err := stream.Send(flowauditv1.FromBatch(&batch)); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	_, err = stream.Recv()
	return err
}
