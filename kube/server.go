package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
)

// server is an API server that is asked.
type server struct {
	config *rest.Config
	client *http.Client
}

func newServer(config *rest.Config) (*server, error) {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("make a client of the API server: %w", err)
	}
	return &server{config, client}, nil
}

// source makes the client of a kind.
func (s *server) source(k kind) (listWatch, error) {
	if k.metadata {
		client, err := metadata.NewForConfigAndClient(s.config, s.client)
		if err != nil {
			return nil, err
		}
		return metadataSource{client.Resource(k.resource)}, nil
	}
	client, err := s.restClient(k.resource.GroupVersion())
	if err != nil {
		return nil, err
	}
	return restSource{client, k.resource.Resource}, nil
}

func (s *server) restClient(v schema.GroupVersion) (*rest.RESTClient, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discoveryv1.AddToScheme, networkingv1.AddToScheme, appsv1.AddToScheme, batchv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	c := rest.CopyConfig(s.config)
	c.GroupVersion, c.APIPath = &v, "/apis"
	if v.Group == "" {
		c.APIPath = "/api"
	}
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	return rest.RESTClientForConfigAndClient(c, s.client)
}

type restSource struct {
	client   *rest.RESTClient
	resource string
}

func (s restSource) List(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	return s.client.Get().Resource(s.resource).VersionedParams(&o, metav1.ParameterCodec).Do(ctx).Get()
}

func (s restSource) Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	o.Watch = true
	return s.client.Get().Resource(s.resource).VersionedParams(&o, metav1.ParameterCodec).Watch(ctx)
}

type metadataSource struct{ metadata.Getter }

func (s metadataSource) List(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	return s.Getter.List(ctx, o)
}

// read asks for a path's JSON.
func (s *server) read(ctx context.Context, path string, into any) error {
	client, err := s.restClient(schema.GroupVersion{Version: "v1"})
	if err != nil {
		return err
	}
	b, err := client.Get().RequestURI(path).SetHeader("Accept", "application/json").Do(ctx).Raw()
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return json.Unmarshal(b, into)
}
