import dev.flyrpc.ApiClient;
import dev.flyrpc.ApiException;
import dev.flyrpc.api.ClusterApi;
import dev.flyrpc.api.FunctionsApi;
import dev.flyrpc.api.FunctionsApi.APINotesCountRequest;
import dev.flyrpc.api.FunctionsApi.APINotesCreateRequest;
import dev.flyrpc.api.RpcApi;
import dev.flyrpc.api.RpcApi.APICallFunctionRequest;
import dev.flyrpc.model.CallRequest;
import dev.flyrpc.model.NotesCreateArgs;
import dev.flyrpc.model.Problem;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.stream.Collectors;

/**
 * A client that openapi-generator generated: a call, a problem, the regions, the functions of an app.
 *
 * FLY_RPC_URL names the instance to ask; FLY_RPC_TOKEN is a client's token, where the instance wants one. NOTES_URL names
 * an instance beside the app.
 */
public class Main {
    private static final ApiClient CLIENT = client(System.getenv("FLY_RPC_URL"));
    private static final RpcApi RPC = new RpcApi(CLIENT);
    private static final FunctionsApi NOTES = new FunctionsApi(client(System.getenv("NOTES_URL")));

    public static void main(String[] arguments) throws Exception {
        var upcase = new CallRequest().module("String").function("upcase").args(List.of("fly"));
        var reply = RPC.callFunction(call("syd", upcase));
        System.out.printf("result %s from %s%n", reply.getResult(), reply.getMeta().getRegion());

        var problem = problemOf(() -> RPC.callFunction(call("mars", upcase)));
        System.out.printf("problem %s executed %s%n", problem.getCode(), problem.getExecuted());

        var raise = new CallRequest().module("Kernel").function("raise").args(List.of("boom"));
        printError(problemOf(() -> RPC.callFunction(call("syd", raise))));

        var regions = new ClusterApi(CLIENT).listRegions().getRegions();
        System.out.println("regions " + regions.stream().map(region -> region.getRegion()).collect(Collectors.joining(" ")));

        var milk = new NotesCreateArgs().title("Milk").tags(List.of("dairy", "cold"));
        var created = NOTES.notesCreate(create("syd", milk));
        var counted = NOTES.notesCount(APINotesCountRequest.newBuilder().region("iad").build());
        var note = created.getResult();
        System.out.printf(
            "note %d %s from %s, %d in %s%n",
            note.getNumber(), note.getTitle(), created.getMeta().getRegion(), counted.getResult(), counted.getMeta().getRegion());

        var untitled = new NotesCreateArgs().title("").tags(List.of());
        printError(problemOf(() -> NOTES.notesCreate(create("syd", untitled))));
    }

    private static ApiClient client(String url) {
        var client = new ApiClient();
        client.updateBaseUri(url);
        var token = System.getenv("FLY_RPC_TOKEN");
        if (token != null) {
            client.setRequestInterceptor(request -> request.header("authorization", "Bearer " + token));
        }
        return client;
    }

    private static APICallFunctionRequest call(String region, CallRequest call) {
        return APICallFunctionRequest.newBuilder().region(region).callRequest(call).build();
    }

    private static APINotesCreateRequest create(String region, NotesCreateArgs args) {
        return APINotesCreateRequest.newBuilder().region(region).notesCreateArgs(args).build();
    }

    private static void printError(Problem problem) {
        var error = problem.getError();
        System.out.printf("error %s: %s executed %s%n", error.getKind(), error.getMessage(), problem.getExecuted());
    }

    private static Problem problemOf(Callable<?> call) throws Exception {
        try {
            throw new AssertionError(call.call());
        } catch (ApiException refused) {
            return CLIENT.getObjectMapper().readValue(refused.getResponseBody(), Problem.class);
        }
    }
}
