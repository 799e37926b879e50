import dev.flyrpc.ApiClient;
import dev.flyrpc.ApiException;
import dev.flyrpc.api.ClusterApi;
import dev.flyrpc.api.RpcApi;
import dev.flyrpc.model.CallRequest;
import dev.flyrpc.model.Problem;
import java.util.List;
import java.util.stream.Collectors;

/**
 * A client that openapi-generator generated: a call, a problem, the regions.
 *
 * FLY_RPC_URL names the instance to ask; FLY_RPC_TOKEN is a client's token, where the instance wants one.
 */
public class Main {
    private static final ApiClient CLIENT = client();
    private static final RpcApi RPC = new RpcApi(CLIENT);

    public static void main(String[] arguments) throws Exception {
        var upcase = new CallRequest().module("String").function("upcase").args(List.of("fly"));
        var reply = RPC.callFunction("syd", upcase, null, null, null, null);
        System.out.printf("result %s from %s%n", reply.getResult(), reply.getMeta().getRegion());

        var problem = problemOf("mars", upcase);
        System.out.printf("problem %s executed %s%n", problem.getCode(), problem.getExecuted());

        var failed = problemOf("syd", new CallRequest().module("Kernel").function("raise").args(List.of("boom")));
        var error = failed.getError();
        System.out.printf("error %s: %s executed %s%n", error.getKind(), error.getMessage(), failed.getExecuted());

        var regions = new ClusterApi(CLIENT).listRegions().getRegions();
        System.out.println("regions " + regions.stream().map(region -> region.getRegion()).collect(Collectors.joining(" ")));
    }

    private static ApiClient client() {
        var client = new ApiClient();
        client.updateBaseUri(System.getenv("FLY_RPC_URL"));
        var token = System.getenv("FLY_RPC_TOKEN");
        if (token != null) {
            client.setRequestInterceptor(request -> request.header("authorization", "Bearer " + token));
        }
        return client;
    }

    private static Problem problemOf(String region, CallRequest call) throws Exception {
        try {
            throw new AssertionError(RPC.callFunction(region, call, null, null, null, null));
        } catch (ApiException refused) {
            return CLIENT.getObjectMapper().readValue(refused.getResponseBody(), Problem.class);
        }
    }
}
