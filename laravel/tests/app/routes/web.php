<?php

use App\Events\OrderShipped;
use Illuminate\Support\Facades\DB;
use Illuminate\Support\Facades\Route;

Route::get('/fire', function () {
    event(new OrderShipped(1));

    return 'ok';
});
Route::get('/helper', function () {
    broadcast(new OrderShipped(1))->toOthers();

    return 'ok';
});
Route::get('/fail', function () {
    event(new OrderShipped(1));
    throw new RuntimeException('after the event');
});
Route::get('/gone', function () {
    event(new OrderShipped(1));
    abort(404);
});
Route::get('/unavailable', function () {
    event(new OrderShipped(1));

    return response('down', 503);
});
Route::get('/commit', function () {
    event(new OrderShipped(1));
    DB::transaction(fn () => event(new OrderShipped(2)));
    event(new OrderShipped(3));
    if (request('then') === 'fail') {
        throw new RuntimeException('after the commit');
    }

    return 'ok';
});
Route::get('/batch', function () {
    Realtime\batch(function () {
        broadcastToUser(7, ['order' => 'lost']);
        throw new RuntimeException('inside the batch');
    });
});
Route::get('/rollback', function () {
    try {
        DB::transaction(function () {
            event(new OrderShipped(1));
            throw new DomainException('rolled back');
        });
    } catch (DomainException) {
    }
    event(new OrderShipped(2));

    return 'ok';
});
